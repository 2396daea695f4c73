"""Models from and to elsewhere."""
