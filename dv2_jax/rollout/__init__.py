"""Rollouts: schedules trajectories between the inference engine and the tools."""
