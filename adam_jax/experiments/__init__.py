"""Train a Flax model, or a problem of your own, with any optimizer of adam_jax.

This is the command line `adam-jax`; it needs the extra `experiments`.
"""

import lazy_loader

# Imported when it is asked for: the command line answers at once where it needs no JAX.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
