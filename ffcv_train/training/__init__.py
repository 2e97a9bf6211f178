"""A run: set up, trained, stopped, resumed."""
