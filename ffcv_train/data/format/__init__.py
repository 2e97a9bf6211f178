"""The .beton file: its types, opening, writing pages, verification."""
