"""From .beton files, zip archives and folders to batches on the device."""
