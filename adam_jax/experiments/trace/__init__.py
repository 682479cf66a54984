"""Paths of optimizers on two-dimensional surfaces: `adam-jax trace`."""
