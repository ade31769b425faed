#!/bin/bash
# Training over the nodes of a Slurm job. FATHOM_HOME has to lie on a disk that all nodes share.
#   sbatch slurm.sh
#SBATCH --job-name=fathom
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue

set -u
export FATHOM_HOME=${FATHOM_HOME:-$HOME/.fathom}
cd "${FATHOM:-$HOME/fathom}"
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# Two minutes before the time is up Slurm tells this script, which passes it on: all ranks stop after their step, with a
# checkpoint. --requeue then starts the job again, and --resume goes on from it.
srun .venv/bin/torchrun \
    --nnodes "$SLURM_NNODES" --nproc-per-node "$SLURM_GPUS_ON_NODE" --max-restarts 3 \
    --rdzv-backend c10d --rdzv-endpoint "$first:29500" --rdzv-id "$SLURM_JOB_ID" \
    -m fathom -- pretrain --corpus books --tokenizer books --depth 20 --run mine --resume &
trap 'kill -TERM $!; wait $!; scontrol requeue "$SLURM_JOB_ID"' TERM
wait $!
