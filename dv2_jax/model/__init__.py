"""Qwen2.5-VL: architecture, inputs, and flat parameters. Import the submodules: this package loads none of them."""
