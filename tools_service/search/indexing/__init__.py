"""Building local indexes: corpora, image descriptors, embeddings."""
