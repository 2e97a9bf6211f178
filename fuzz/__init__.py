"""Fuzzing of the decoder and of the format, by processes that may die."""
