"""`make selfcheck`: Transformer Engine's native NVFP4 against this project's, on a GPU that has both.

`engines.py` are the two sides, `deviations.py` finds and explains differences, `rounding.py` judges stochastic
rounding, `step.py` trains a step both ways, `check.py` goes through it all and `report.py` puts it into words.
"""

FAST_MATH = "NVTE_USE_FAST_MATH"  # of Transformer Engine; the result says how it was set
