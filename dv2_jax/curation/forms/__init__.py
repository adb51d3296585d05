"""The forms of rows that come with dv2_jax, one per file."""
