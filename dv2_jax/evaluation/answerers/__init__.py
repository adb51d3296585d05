"""Answerers: the engine of this process, or a model behind an OpenAI-compatible endpoint."""
