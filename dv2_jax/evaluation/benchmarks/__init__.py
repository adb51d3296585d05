"""Benchmarks: each is one class that loads questions, writes prompts, scores answers and aggregates the scores."""
