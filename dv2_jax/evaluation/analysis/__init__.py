"""Tool-use analysis from the records of a run: the paper's Figures 6, 7, 8 and 10, error classes, benefit of tools."""
