"""What is asked for: models, precisions, the NVFP4 recipe, settings, overrides, datasets, memory.

No torch: the host imports it. May import `inputs` and `record`.
"""
