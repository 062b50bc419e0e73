"""Cascades: images from stages of growing size, each of which is a run of its own."""
