"""`make data`: text to a Megatron dataset, in parallel, resumable, with a manifest beside it.

sources.py       files, cut into chunks
worker.py        a chunk to tokens, in a thread or process of its own
tokenizers.py    bytes or Hugging Face
build.py         tokens to .bin and .idx, in order

What a training itself asks of its data: builtin_text.py and corpus.py. What files hold is told by `inputs`.
"""

# What to do about a process that was killed.
OUT_OF_MEMORY = "if nobody did that, memory ran out: the same command with fewer --workers goes on from here"
