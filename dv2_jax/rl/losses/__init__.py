"""The policy losses that come with dv2_jax, one file each; see `rl.loss_registry`."""
