"""The HTTP side of search: transport, circuit breaker, reply schemas, API keys."""
