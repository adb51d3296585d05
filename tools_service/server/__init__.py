"""The gRPC server process: sessions, admission, idempotency, authentication. It runs no untrusted code."""
