"""Moments: what they gather, how they are stored, and both over a pytree."""
