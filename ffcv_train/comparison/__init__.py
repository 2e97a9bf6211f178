"""A fair comparison of criteria: what is run, running it, measuring the runs, the report."""
