"""Codecs: how images become the x_0 that diffuses, and x_0 images."""
