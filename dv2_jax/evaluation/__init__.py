"""Evaluation: held-out questions answered as in training, aggregated per skill."""
