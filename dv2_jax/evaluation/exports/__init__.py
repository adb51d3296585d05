"""Exports of evaluations: the answers and scores of a run in the formats of other tools, one class per format."""
