"""`make data`: text to a Megatron dataset, in parallel, resumable, with a manifest beside it.

contents.py      what a file is by its first bytes, and the command that mends it
sources.py       files, cut into chunks
json_lines.py    a line to its texts
worker.py        a chunk to tokens, in a thread or process of its own
tokenizers.py    bytes or Hugging Face
build.py         tokens to .bin and .idx, in order
manifest.py      what the result is, for a training to read

What a training itself asks of its data: builtin_text.py, corpus.py, instructions.py and tokenizer_folder.py.
"""

# What to do about a process that was killed.
OUT_OF_MEMORY = "if nobody did that, memory ran out: the same command with fewer --workers goes on from here"
