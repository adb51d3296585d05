"""The process that owns confinement: user ids, cgroups, folders, the watchdog; and its client in the server."""
