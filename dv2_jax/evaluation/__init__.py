"""Held-out questions through the same protocol as training, counted per skill."""
