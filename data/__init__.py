"""Faces to train on: sets, their order, augmentation, decoding."""
