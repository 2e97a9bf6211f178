"""The page of viz/report.py: what runs and comparisons left behind, in one HTML file."""
