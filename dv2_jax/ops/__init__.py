"""Array operations and their backends: attention, log-probabilities, rematerialization, permutation."""
