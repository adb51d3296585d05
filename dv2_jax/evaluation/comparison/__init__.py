"""Compares finished evaluations question by question: reads their records, pairs them, and renders the result."""
