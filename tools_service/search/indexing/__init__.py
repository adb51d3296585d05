"""Builds local indexes: corpora, image descriptors and embeddings."""
