"""Implements the HTTP side of search: transport, circuit breaker, reply schemas and API keys."""
