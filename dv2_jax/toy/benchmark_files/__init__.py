"""Writes small benchmark files in the published formats, from the embedded tasks and data of installed packages."""
