"""An OpenAI-compatible HTTP server of a policy: as an agent with its tools, and turn by turn without them."""
