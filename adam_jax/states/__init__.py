"""Optimizer states: find, read and convert what is in them."""
