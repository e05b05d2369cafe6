"""Transformer Engine's native kernels against the specification, on a GPU that has them.

`make selfcheck`, NVFP4 bit by bit: `engines.py` are the two sides, `deviations.py` finds and explains differences,
`rounding.py` judges stochastic rounding, `step.py` trains a step both ways, `check.py` goes through it all and
`report.py` puts it into words. At the start of each native run `probe.py` holds a little of it, FP8 too, against what
`formats.py` says of each quantizer.
"""

FAST_MATH = "NVTE_USE_FAST_MATH"  # of Transformer Engine; the result says how it was set
