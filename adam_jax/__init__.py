"""Adam, taken apart: composable stages for Optax, and the optimizers made of them.

>>> import optax, adam_jax
>>> tx = optax.chain(
...     adam_jax.scale_by_moments(b1=0.9, b2=0.999),
...     adam_jax.bias_correct(),
...     adam_jax.scale_by_lr(1e-3),
... )
"""

from importlib.metadata import version

import lazy_loader

# Each name of __init__.pyi is imported when it is asked for, so the command line
# answers at once where it needs no JAX.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = version("adam_jax")
