"""Pure statistics of logits, labels and features, and the files that hold them."""
