"""For whoever ports a method from a paper: does the chain follow the paper's rule?"""

from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

SCALES = (1e-6, 1e-3, 1.0, 10.0, 100.0, 1.0)


def assert_follows(
    tx: optax.GradientTransformation,
    rule: Callable[[Sequence[float], float], Iterable[float]],
    *,
    steps: int = 200,
    seed: int = 0,
    tolerance: float = 1e-12,
) -> None:
    """Assert that an optimizer follows a scalar rule at every step, in float64.

    It sees six parameters from -1 to 1, whose gradients are random, of scales from 1e-6
    to 100; one in ten is 0, and the last parameter has none in the first half. Errors
    are relative to the update, or to the mean size of a parameter's updates if that is
    larger.

    Args:
      tx: the optimizer. It must treat elements one by one.
      rule: (grads, param) -> one update a step: a plain Python loop, transcribed from
        the paper, over the gradients (floats) of one parameter that starts at `param`.
      steps: the number of steps, >= 2.
      seed: the seed of the gradients, an integer.
      tolerance: the largest error that passes, relative as said above.

    Raises:
      AssertionError: at the first update that is further off, with both values; or if
        the rule yields too few updates, or too many.

    Example: momentum, and a rule in which the learning rate is forgotten.

      >>> from adam_jax import sgd
      >>> def rule(grads, param, learning_rate=0.1):
      ...     trace = 0.0
      ...     for g in grads:
      ...         trace = 0.9 * trace + g
      ...         yield -learning_rate * trace
      >>> assert_follows(sgd(0.1, momentum=0.9), rule)
      >>> assert_follows(sgd(0.2, momentum=0.9), rule)
      Traceback (most recent call last):
      AssertionError: step 1, parameter 0: the update is -2.514604e-08, by the rule \
-1.257302e-08.
    """
    rng = np.random.default_rng(seed)
    grads = rng.normal(size=(steps, len(SCALES))) * SCALES
    grads[rng.random(grads.shape) < 0.1] = 0
    grads[: steps // 2, -1] = 0
    params = np.linspace(-1, 1, len(SCALES))
    columns = zip(grads.T.tolist(), params.tolist(), strict=True)
    expected = np.array([[*rule(column, param)] for column, param in columns]).T

    def step(carry, grad):
        params, state = carry
        updates, state = tx.update(grad, state, params)
        return (optax.apply_updates(params, updates), state), updates

    with jax.enable_x64(True):
        start = jnp.asarray(params), tx.init(jnp.asarray(params))
        _, found = jax.lax.scan(step, start, jnp.asarray(grads))
        found = np.asarray(found)
    if expected.shape != found.shape:
        raise AssertionError(
            f"the rule gave {len(expected)} updates for {steps} gradients: it must "
            "yield one for each."
        )
    size = np.maximum(np.abs(expected), np.abs(expected).mean(0))
    wrong = ~(np.abs(found - expected) <= tolerance * size)
    for number, parameter in np.argwhere(wrong)[:1]:
        raise AssertionError(
            f"step {number + 1}, parameter {parameter}: the update is "
            f"{found[number, parameter]:.6e}, by the rule "
            f"{expected[number, parameter]:.6e}."
        )
