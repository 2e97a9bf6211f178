"""The page of ffcv-train report: what runs and comparisons left behind, in one HTML file."""
