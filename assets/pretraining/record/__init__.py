"""The run folder: names, schema, writing, reading.

Standard library only: the host, a container and a cluster node read and write it alike.
"""
