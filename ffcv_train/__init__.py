"""ffcv_train: a high-throughput ImageNet trainer on FFCV, with the MaxSup criterion."""
