"""The toy world of the default run: its tasks, scripted teacher, pre-training corpus, vocabulary and tiny weights."""
