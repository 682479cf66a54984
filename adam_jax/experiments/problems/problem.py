"""What an optimizer is tried on: data, and pure functions of parameters and a key."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from adam_jax.experiments.metrics import LOSS

TEST_SEED = 0  # of the noise in a test: losses compare on the same draws only


@dataclass(frozen=True)
class Problem:
    """Hold what an optimizer is tried on. The functions can be jitted and vmapped.

    Attributes:
      init: Map a key of jax.random to the parameters, a pytree of floating arrays.
      loss: Map (params, batch, key) to the loss that is trained, a scalar. The key is
        for what is random in it, and another one in each step.
      train: What is learned from. A tuple, a dict or another pytree of arrays holds an
        example in each row, which is drawn once an epoch. Anything else gives batches,
        pytrees of arrays: a list, a grain.DataLoader, whatever can be iterated more
        than once, or a function that gives an iterator. Its batches are taken in
        their order, then those of its next pass; a smaller one is left out.
      test: The same for the examples that each epoch is tested on; batches are read
        once, and kept. A number keeps such a share of the rows of `train` for it: the
        same ones whatever the seed.
      metrics: Map (params, batch) to a dict of scalars, the means over a batch of
        test examples, to be reported beside the loss: "accuracy" is shown in percent.
        A "loss" among them is the test loss; else it is `loss`, with a fixed key. More
        than 4,096 test examples are measured in pieces, and averaged.
      baselines: What a metric is without a model, by name: such as the share of the
        commonest label. A dashed line marks it in pictures.
      loss_name: What the loss is, with its unit, in tables and pictures.

    Example: a straight line through five points.

      >>> x = jnp.arange(5.0)
      >>> problem = Problem(
      ...     init=lambda key: {"slope": jnp.zeros([])},
      ...     loss=lambda params, batch, key: jnp.mean(
      ...         (params["slope"] * batch["x"] - batch["y"]) ** 2
      ...     ),
      ...     train={"x": x, "y": 2 * x},
      ... )
      >>> print(problem.loss(problem.init(None), problem.train, None))
      24.0
    """

    init: Callable[[Array], Any]
    loss: Callable[[Any, Any, Array], Array]
    train: Any
    test: Any = 0.2
    metrics: Callable[[Any, Any], Mapping[str, Array]] | None = None
    baselines: Mapping[str, float] = field(default_factory=dict)
    loss_name: str = "loss"


def nnx_problem(
    build: Callable[[Array], nnx.Module],
    loss: Callable[[Any, Any, Array], Array],
    train: Any,
    test: Any = 0.2,
    metrics: Callable[[Any, Any], Mapping[str, Array]] | None = None,
    baselines: Mapping[str, float] | None = None,
    loss_name: str = "loss",
) -> Problem:
    """Make a problem of a Flax NNX module.

    Dropout is on in training, with noise from the step's key, and off in tests. What a
    module holds but parameters and the state of its noise is not trained and cannot
    change: a module with batch statistics is refused.

    Args:
      build: Map a key of jax.random to a module.
      loss: Map (module, batch, key) to the loss that is trained, a scalar.
      train: As in `Problem`.
      test: As in `Problem`.
      metrics: Map (module, batch) to a dict of scalars, as in `Problem`.
      baselines: As in `Problem`.
      loss_name: As in `Problem`.

    Raises:
      ValueError: if the module holds what is no parameter, such as batch statistics.
    """
    # Shapes tell what is to be known; a large module is drawn by `init` alone.
    shapes = nnx.eval_shape(build, jax.random.key(0))
    graphdef, _, noise, others = nnx.split(shapes, nnx.Param, nnx.RngState, ...)
    if jax.tree.leaves(others):
        flat = jax.tree.leaves(others, is_leaf=lambda x: isinstance(x, nnx.Variable))
        kinds = sorted({type(variable).__name__ for variable in flat})
        raise ValueError(
            f"the module holds {', '.join(kinds)} beside its parameters, which a loss "
            "of parameters and a batch cannot change: take layers without, as "
            "GroupNorm in place of BatchNorm"
        )

    def init(key: Array) -> Any:
        return nnx.to_pure_dict(nnx.state(build(key), nnx.Param))

    def merge(params: Any, key: Array) -> Any:
        leaves, structure = jax.tree.flatten(noise)
        renewed = [
            jax.random.fold_in(key, number)
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            else jnp.zeros_like(leaf)
            for number, leaf in enumerate(leaves)
        ]
        return nnx.merge(graphdef, params, jax.tree.unflatten(structure, renewed))

    def train_loss(params: Any, batch: Any, key: Array) -> Array:
        module = merge(params, key)
        module.train()
        return loss(module, batch, key)

    def measure(params: Any, batch: Any) -> dict[str, Array]:
        key = jax.random.key(TEST_SEED)
        module = merge(params, key)
        module.eval()
        found = metrics(module, batch) if metrics else {}
        return {LOSS: loss(module, batch, key), **found}

    return Problem(init, train_loss, train, test, measure, baselines or {}, loss_name)
