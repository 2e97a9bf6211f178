"""Figures and tables from logits files and metrics."""
