"""The NVFP4 recipe: its words, the value that a run gets of them, and which recipe can run where. No torch here."""
