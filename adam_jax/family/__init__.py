"""The named optimizers. The body of each is one chain: the algorithm box of its paper.

Names, positional order and defaults are Optax's, so `adam_jax.adam` can replace
`optax.adam`. Arguments that Optax does not have are keyword-only.
"""
