"""A whole optimizer: an `optax.chain` with a name."""

import optax


def chain(
    name: str, *stages: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Chain stages, and refuse a state that was made by another chain.

    Args:
      name: the optimizer's name, for the error message.
      *stages: the transformations, as in `optax.chain`.

    Raises:
      TypeError: at the first trace, if the state belongs to another chain.
    """
    inner = optax.chain(*stages)

    def update_fn(updates, state, params=None, **extra_args):
        plain = isinstance(state, tuple | list) and not hasattr(state, "_fields")
        if not plain or len(state) != len(stages):
            names = [type(part).__name__ for part in state] if plain else []
            found = f"({', '.join(names)})" if plain else type(state).__name__
            raise TypeError(
                f"{name}() was given the state of another optimizer: {found}. Its own "
                f"is a tuple with a state for each stage, {len(stages)} in all: start "
                "from tx.init(params), or restore into jax.eval_shape(tx.init, params)."
            )
        return inner.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(inner.init, update_fn)
