"""Everything that knows Megatron-Bridge: config, versions, weights, writers, plugin, the CPU.

May import `numerics`, `data`, `request`, `inputs` and `record`.
"""
