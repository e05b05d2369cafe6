"""Words of the NVFP4 recipe whose value has a grammar of its own, and which recipe can run. No torch here."""
