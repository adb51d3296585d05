"""Helpers shared by all processes of the service."""
