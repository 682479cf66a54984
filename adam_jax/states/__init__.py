"""Optimizer states: finding what is in them, reading it, storing it otherwise."""
