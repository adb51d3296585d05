"""Checkpoints: training state, Hugging Face and GGUF weights, and the resolution of `model.init`."""
