"""The named optimizers, each body one chain: the algorithm box of its paper.

Names, positional order and defaults are Optax's, so that `adam_jax.adam` can stand
where `optax.adam` stood; what we add is keyword-only.
"""
