"""Array functions, one each, with their backends."""
