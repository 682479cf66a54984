"""Gradients in other coordinates, in which any stages work, and the way back."""
