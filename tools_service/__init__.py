"""Stateful Python sandboxes and search behind gRPC.

`python -m tools_service` starts a service, `python -m tools_service.cli.shell` runs an interactive session,
`python -m tools_service.cli.index` builds search indexes, and `tools_service.client` is the client library. The
package imports neither jax nor dv2_jax.

A service consists of three kinds of process: the gRPC server, which never forks; a manager, which owns the
confinement (user ids, cgroups, kills); and a single-threaded zygote, started by exec with an empty environment, which
imports the libraries once and from which every session process is forked.
"""

__version__ = "0.1.0"
