"""Where the time of a step goes.

May import `record`.
"""
