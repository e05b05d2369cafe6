"""The Docker SDK's room.

May import what `launch` may.
"""
