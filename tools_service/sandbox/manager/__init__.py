"""The manager process, which owns confinement (user ids, cgroups, folders, watchdog), and its client in the server."""
