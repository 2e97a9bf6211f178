"""Augmentation of a batch on its device, per sample, as a function of (seed, epoch, sample)."""
