"""What a person types to make: the targets, their options, the check of both, and the help.

Only the standard library, in words that Python 3.8 reads: all of it comes before any set-up.
"""
