"""What a training left, read: run folders and raw logs.

May import `common`.
"""
