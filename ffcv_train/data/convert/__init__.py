"""From a source to a .beton file or to zip archives, by worker processes."""
