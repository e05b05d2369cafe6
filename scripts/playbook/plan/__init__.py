"""What will run, where, and why. Starts nothing.

May import `record`.
"""
