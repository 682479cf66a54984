"""Wrappers around a whole optimizer: rounding, guards, checks, figures, packing."""
