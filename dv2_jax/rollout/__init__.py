"""Trajectories: the scheduler that feeds the engine and the tools."""
