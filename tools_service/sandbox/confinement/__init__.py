"""Implements Linux confinement: namespaces, seccomp, Landlock and a private root file system."""
