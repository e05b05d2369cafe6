"""NVFP4 arithmetic: the specification, its fast versions, and how it enters a training framework."""
