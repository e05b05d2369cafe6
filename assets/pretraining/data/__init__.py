"""`make data`: text to a Megatron dataset, in parallel, resumable, with a manifest beside it.

sources.py     files, cut into chunks
worker.py      a chunk to tokens, in a thread or process of its own
tokenizers.py  bytes or Hugging Face
build.py       tokens to .bin and .idx, in order
manifest.py    what the result is; all that a training reads of this package
"""

# What to do about a process that was killed.
OUT_OF_MEMORY = "if nobody did that, memory ran out: the same command with fewer --workers goes on from here"
