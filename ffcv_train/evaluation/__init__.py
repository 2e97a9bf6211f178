"""A checkpoint over a data set: metrics, logits, features, transfer, Grad-CAM, each sample exactly once."""
