"""Whether everything computes, copies and trains rightly on this GPU, and how fast: `ffcv-train gpu-check`."""
