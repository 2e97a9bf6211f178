"""ffcv_train: train ImageNet classifiers fast on FFCV files, with the MaxSup criterion."""

__version__ = "0.2.0"
