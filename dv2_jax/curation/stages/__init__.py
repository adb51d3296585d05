"""Stages of a curation: each is one registered class in one file."""
