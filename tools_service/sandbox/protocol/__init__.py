"""Messages between server, manager and session, and the validators of what comes back."""
