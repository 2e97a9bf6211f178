"""Suites of an evaluation: what there is to know of a network beyond accuracy, a file each."""
