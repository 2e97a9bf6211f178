"""Options of a run: the schema, its YAML and command-line face, its page in the docs."""
