"""Shared by every process of the service."""
