"""Train a small Flax model on real data with any optimizer of adam_jax.

This is the command line `adam-jax`; it needs the extra `experiments`.
"""
