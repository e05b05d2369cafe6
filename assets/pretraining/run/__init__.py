"""The life of one training process: start, signals, outcome, log, facts, telemetry, device.

May import every other room but `selfcheck`; the scripts of `assets` import it.
"""
