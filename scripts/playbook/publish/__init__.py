"""Records that leave the house, and the pages made from them.

May import `campaign`, `report`, `compare` and `record`.
"""
