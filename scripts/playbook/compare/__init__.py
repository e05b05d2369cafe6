"""Records to figures and sentences.

Knows no file format of a run and draws nothing. May import `record`.
"""
