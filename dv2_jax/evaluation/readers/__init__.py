"""Readers of the files in which benchmarks are published, one per format. They stream: memory holds one row."""
