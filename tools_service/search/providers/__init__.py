"""Implements the search providers: web APIs, reverse image search, local indexes and released results."""
