"""Several trainings that belong together: the turns of a comparison, ablations.

May import `launch`, `plan`, `report`, `compare` and `record`.
"""
