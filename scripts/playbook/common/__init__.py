"""Files written whole, environments, failures.

Imports no other room.
"""
