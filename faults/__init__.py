"""Faults injected into real runs, counted: what README and docs promise of survival, with how often it held."""
