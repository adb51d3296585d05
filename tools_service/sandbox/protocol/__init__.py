"""Defines the messages between server, manager and session, and validates images that sessions return."""
