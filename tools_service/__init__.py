"""Stateful Python sandboxes and search behind gRPC.

``python -m tools_service`` starts a service, ``python -m tools_service.cli.shell`` is a session by hand,
``python -m tools_service.cli.index`` builds search indexes,
``tools_service.client`` talks to it. The package stands alone and imports neither jax nor dv2_jax.

Three processes are kept apart: the gRPC server (never forks), a manager that owns the confinement
(user ids, cgroups, kills), and a single-threaded zygote, started by exec with an empty environment,
that imports the libraries once and from which every session's process is forked.
"""

__version__ = "0.1.0"
