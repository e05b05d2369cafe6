"""NVFP4 arithmetic: the specification, its fast versions, and how it enters a training framework.

May import `request`, `inputs` and `record`.
"""
