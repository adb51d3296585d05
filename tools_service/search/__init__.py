"""Provides text and image search: live web providers, embedded indexes, fallback chains and recorded answers."""
