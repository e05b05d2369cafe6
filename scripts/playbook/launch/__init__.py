"""Start a training, watch it, end it: here, on the CPU or in a container.

May import `plan` and `record`.
"""
