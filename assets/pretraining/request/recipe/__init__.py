"""Words of the NVFP4 recipe whose value has a grammar of its own. Standard library only: the host plans with them."""
