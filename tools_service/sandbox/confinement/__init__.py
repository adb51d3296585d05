"""Linux confinement: namespaces, seccomp, Landlock, a private root."""
