"""Rubrics, one per module; adding one adds one file. See `evaluation.judging.rubric_registry`."""
