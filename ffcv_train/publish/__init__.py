"""A trained network for other programs: export in their formats, checked against ours."""
