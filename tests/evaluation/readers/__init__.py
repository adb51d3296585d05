"""Tests of the readers of benchmark files."""
