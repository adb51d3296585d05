"""Pictures, ids and rows: what the model reads. Nothing here knows the agent loop; ``agent`` imports ``data``."""
