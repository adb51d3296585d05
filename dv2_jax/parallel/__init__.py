"""Device meshes, shardings, and agreement between processes."""
