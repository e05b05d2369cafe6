"""Files written whole, environments, failures, tables for a terminal, the PCI bus.

Imports no other room.
"""
