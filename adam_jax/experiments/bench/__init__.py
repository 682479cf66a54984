"""The time and memory of an optimizer's step, beside others': `adam-jax bench`."""
