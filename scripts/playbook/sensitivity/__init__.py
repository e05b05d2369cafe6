"""Where NVFP4's rounding hurts: what a training measured, shown, and what to keep in BF16 for it.

May import `report` and `common`.
"""
