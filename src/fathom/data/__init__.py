"""Text in, batches out.

corpus/         files of one's own ─▶ a corpus: sharded Parquet, shuffled, with a validation part
hub/            the same from the Hugging Face hub
primer          the same from nothing: a small world's texts, conversations and quiz, generated (primer_*: its parts)
shards          a corpus ─▶ token files, memory-mapped by token_store
packing         document lengths ─▶ rows (pure); permutation is their order in later epochs
batches         (token files, seed, step) ─▶ a batch (pure); prefetch makes it ahead of time
conversations/  messages and tool calls ─▶ tokens and mask, and back; rows and batches for fine-tuning
"""
