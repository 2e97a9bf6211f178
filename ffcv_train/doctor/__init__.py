"""Whether the loader or the training step limits a run on this machine: `python -m ffcv_train doctor`."""
