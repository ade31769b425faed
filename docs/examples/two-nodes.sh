#!/bin/sh
# Training on two machines without any scheduler: start this on both, the first with 0, the second with 1.
#   ./two-nodes.sh 0 192.168.1.10      on 192.168.1.10
#   ./two-nodes.sh 1 192.168.1.10      on the other
# FATHOM_HOME has to lie on a disk that both share (NFS, say). RANKS is the number of GPUs of a machine.
set -eu
node=$1 first=$2
cd "${FATHOM:-$HOME/fathom}"
exec .venv/bin/torchrun --nnodes 2 --node-rank "$node" --nproc-per-node "${RANKS:-1}" \
    --master-addr "$first" --master-port 29500 --max-restarts 3 \
    -m fathom -- pretrain --corpus books --tokenizer books --depth 8 --run mine --resume
