"""Text and image search: one interface, and the embedded providers that need no network."""
