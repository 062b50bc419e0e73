"""Weights in and out: what other codes' files hold, by our names."""
