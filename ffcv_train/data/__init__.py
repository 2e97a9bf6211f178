"""From photographs to .beton files, and from .beton files to batches."""
