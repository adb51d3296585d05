"""The gRPC server process: sessions, admission, idempotency, auth. Runs no untrusted code."""
