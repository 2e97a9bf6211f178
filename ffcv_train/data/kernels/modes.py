"""How a sample is stored: FFCV's numbers."""

MODE_JPG = 0
MODE_RAW = 1
