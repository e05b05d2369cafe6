"""Everything that knows Megatron-Bridge: config, versions, weights, writers, plugin, the CPU.

May import `numerics`, `request` and `record`.
"""
