"""Generates the HTML report of a run directory."""
