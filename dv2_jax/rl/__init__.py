"""Reinforcement learning as pure functions: advantages, losses, batch building, metrics."""
