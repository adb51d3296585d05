"""The advantage estimators that come with dv2_jax, one file each; see `rl.advantage_registry`."""
