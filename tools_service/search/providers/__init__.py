"""Search backends: web APIs, reverse image search, local indexes, released results."""
