"""One moment over a pytree: an accumulator with a format, for use in any stage."""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.tree_util import keystr, tree_flatten_with_path, tree_map_with_path
from jax.typing import ArrayLike, DTypeLike

from adam_jax import numerics, placement
from adam_jax.checks import check_like
from adam_jax.hyperparams import all_at, at, shown
from adam_jax.moments.accumulators import Accumulator
from adam_jax.moments.formats import Format, Stored, check_stored
from adam_jax.moments.noise import LeafNoise, hash_leaf
from adam_jax.moments.starts import expect_weight, keep, resumed, steps_since
from adam_jax.moments.trees import as_leaves, as_tree, decode, store
from adam_jax.tracing import once


class Gathered(NamedTuple):
    """A moment after one step.

    Attributes:
      stored: the moment as the state keeps it, in trees like the parameters.
      moment: the moment in its compute dtype; decoded from `stored` if the format sets
        `flows_stored`.
      flows: what later stages receive: the moment, or the output of its accumulator's
        `read`.
      seen: scalar, the weight that belongs to `flows`.
      weight: shape (2,), the weight seen and its compensation, as in `MomentsState`.
    """

    stored: Stored
    moment: Any
    flows: Any
    seen: jax.Array
    weight: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class Moment:
    """A moment of a stream of values, and how it is stored.

    At each step, a stage that keeps a moment calls `read` and then `step`:

        before = moment.read(stored, grads)
        after = moment.step(stored, before, grads, past, weight)

    Its state keeps the stored moment in one field that is a `Stored`, or in two, `name`
    and `name_format`. Functions that read states look there.

    Attributes:
      accumulator: how values are gathered.
      format: how the moment is stored.
      order: 1 gathers a value g of either sign; 2 gathers |g|^2, real and never
        negative. (A custom `measure` must keep these signs.)
      name: its name in messages, such as "mu".
      argument: the argument that sets its format, for messages, such as "mu_dtype".
    """

    accumulator: Accumulator
    format: Format
    order: Literal[1, 2]
    name: str
    argument: str

    def __post_init__(self) -> None:
        """Check that the accumulator can be used for a moment of this order."""
        for value, kind in ((self.accumulator, Accumulator), (self.format, Format)):
            if not isinstance(value, kind):
                raise TypeError(
                    "a Moment takes an Accumulator and a Format, as in "
                    f"Moment(ema(0.9), dense(), ...), got {shown(value)} for its "
                    f"{kind.__name__}."
                )
        orders = {1: "first", 2: "second"}
        if self.order not in orders:
            raise ValueError(f"order must be 1 or 2, got {self.order!r}.")
        if self.accumulator.order not in (None, self.order):
            raise ValueError(
                f"{self.name} is a {orders[self.order]} moment, but its Accumulator is "
                f"for {orders[self.accumulator.order]} moments only."
            )

    def init(self, params: Any) -> Stored:
        """Return the stored moment before the first value.

        Args:
          params: a pytree of arrays (or of `jax.ShapeDtypeStruct`); the moment is
            sharded like it, and in the same memory.
        """
        moment = tree_map_with_path(self._start, params)
        stored = store(self.format, moment, self.order == 1)
        leaves, structure = tree_flatten_with_path(params)
        own = zip(as_leaves(stored, structure), leaves, strict=True)
        placed = [
            placement.beside(keep(one, self.format, self.name, path, param), param)
            for one, (path, param) in own
        ]
        return as_tree(placed, structure, self.format.reader)

    def read(self, stored: Stored, like: Any) -> Any:
        """Return the moment that `stored` holds, a pytree like the parameters.

        Args:
          stored: the stored moment.
          like: a pytree like the parameters, such as the gradients.

        Raises:
          AssertionError: if `like` does not have the moment's structure and shapes.
          ValueError: if the moment was stored in another format.
        """
        where = f"{self.name} of the optimizer's state"
        structure = jax.tree.structure(like)
        if stored.format is None:
            raise ValueError(
                f"{where} has no {self.name}_format, which tells how to read it: start "
                "from tx.init(params), or restore into jax.eval_shape(tx.init, params)."
            )
        if structure != jax.tree.structure(stored.values):
            check_like(like, stored.values, "grads", where)
        paths = tree_flatten_with_path(like)[0]
        leaves = []
        for (path, leaf), one in zip(paths, as_leaves(stored, structure), strict=True):
            leaf = leaf if hasattr(leaf, "shape") else np.asarray(leaf)
            if not placement.at_leaf(path, self.format.wrote, one, leaf):
                found = f"{type(one.format).__name__}, {jax.typeof(one.values)}"
                raise ValueError(
                    f"{self.name}{keystr(path)} is stored in the state in another "
                    f"format ({found}) than by this optimizer ({self.format}): give it "
                    f"the {self.argument} that the state was made with, or go on from "
                    "adam_jax.adopt_state(tx, state, params).state, which stores it as "
                    "this optimizer does."
                )
            leaves.append(placement.at_leaf(path, one.decode, leaf))
        moment = structure.unflatten(leaves)
        check_like(like, moment, "grads", where)
        return moment

    def step(
        self,
        stored: Stored,
        before: Any,
        values: Any,
        past: ArrayLike,
        weight: jax.Array | None = None,
        mu: Any = None,
    ) -> Gathered:
        """Gather one more value.

        Args:
          stored: the stored moment so far.
          before: the moment so far, as `read` returned it.
          values: the values, a pytree like the parameters, float32 or wider.
          past: int32 scalar, the number of steps before this one.
          weight: shape (2,), the weight seen so far and its compensation; None if it
            is not needed.
          mu: the first moment of this step, for accumulators whose `measure` uses it;
            None means the values.

        Raises:
          TypeError: if a complex value would go into a real moment.
        """
        accumulator: Any = self.accumulator
        power = numerics.abs_sq if self.order == 2 else lambda grad: grad
        measure = accumulator.measure or (lambda grad, mu, h: power(grad))
        read = accumulator.read
        age = steps_since(past, accumulator.restart_every)

        @functools.cache
        def at_dtype(dtype):  # the hyperparameters of this step
            return all_at(accumulator.hyperparams, past, dtype)

        def hyperparams_of(old, grad):
            real = numerics.real_dtype(grad.dtype)
            return at_dtype(grad.dtype if jnp.iscomplexobj(old) else real)

        def add_leaf(old, grad, mu):
            h = hyperparams_of(old, grad)
            value = measure(grad, mu, h)
            if jnp.iscomplexobj(value) and not jnp.iscomplexobj(old):
                raise TypeError(
                    f"a {value.dtype} gradient cannot be gathered into a {old.dtype} "
                    "moment: pass a complex mu_dtype (or None), or real gradients for "
                    "real parameters."
                )
            return accumulator.add(old.astype(value.dtype), value, h)

        def step_leaf(old, grad, mu, kept, known):
            if accumulator.restart_every:
                old = jnp.where(age == 0, accumulator.initial, old)
            new = add_leaf(old, grad, mu)
            return old, new, self._encode(new, kept, known, past)

        step_alike = once(step_leaf)
        leaves, structure = tree_flatten_with_path(values)
        kept = as_leaves(stored, structure)
        others = map(jax.tree.leaves, (before, values if mu is None else mu))
        rows, last = [], None
        for i, ((path, value), old, like) in enumerate(
            zip(leaves, *others, strict=True)
        ):
            if in_host := placement.in_host(kept[i].values):
                # `before` is of all leaves at once: decode each when its turn has come.
                kept[i] = placement.after(kept[i], last)
                old = placement.at_leaf(path, kept[i].decode, value)
            hyperparams_of(old, value)  # are traced here, not with one of the leaves
            known = hash_leaf(self.format.seed, i)
            step = step_leaf if in_host else step_alike
            rows.append(placement.at_leaf(path, step, old, value, like, kept[i], known))
            last = rows[-1][-1] if in_host else last
        before, moment, codes = ([row[k] for row in rows] for k in range(3))
        before, moment = map(structure.unflatten, (before, moment))
        stored = as_tree(codes, structure, self.format.reader)
        if self.format.flows_stored:
            moment = decode(stored, moment)
        weight, weight_before = self._weigh(weight, past, before), weight
        flows, seen = moment, weight[0]
        if read is not None:

            def read_leaf(new, old, grad):
                h, old = at_dtype(new.dtype), old.astype(new.dtype)
                return read(new, old, grad, seen.astype(new.dtype), h)

            flows = tree_map_with_path(
                lambda path, *leaf: placement.at_leaf(path, read_leaf, *leaf),
                moment,
                before,
                values,
            )
        if accumulator.first is not None:
            known, first = age > 0, accumulator.first
            if weight_before is not None:
                known &= weight_before[0] > 0
                seen = jnp.where(known, weight_before[0], 1)
            flows = jax.tree.map(lambda old: jnp.where(known, old, first), before)
        if accumulator.power == 1:
            flows, seen = jax.tree.map(jnp.square, (flows, seen))
        return Gathered(stored, moment, flows, seen, weight)

    def decay(self, past: ArrayLike, dtype: DTypeLike) -> Any:
        """Return the decay rate of the next step, or None if this is not an average.

        Args:
          past: int32 scalar, the number of steps before it.
          dtype: the dtype of a rate that is not a float.
        """
        if not self.accumulator.averages:
            return None
        return at(self.accumulator.hyperparams["decay"], past, dtype)

    def _start(self, path: Any, param: Any) -> jax.Array:
        """Return the moment of one leaf before the first value."""
        dtype = numerics.compute_dtype(numerics.dtype_of(param))
        dtype = dtype if self.order == 1 else numerics.real_dtype(dtype)
        if (old := resumed()) and path in (values := old.values.get(self.name, {})):
            return placement.copy_beside(values[path], param, dtype)
        return numerics.full_like(param, self.accumulator.initial, dtype)

    def weigh_past(self, count: int, dtype: DTypeLike) -> jax.Array:
        """Return the weight pair after so many steps.

        Args:
          count: the number of steps.
          dtype: of the result, shape (2,).
        """
        start = jnp.zeros([2], dtype)
        if not count:
            return start
        if isinstance(self.decay(0, dtype), float | None):  # only the last step counts
            return self._weigh(start, count - 1)
        return lax.fori_loop(0, count, lambda i, w: self._weigh(w, i), start)

    def _encode(self, x: Any, old: Stored, known: Any, past: Any) -> Stored:
        """Store the moment of a leaf, of which `hash_leaf` made `known`, for `old`."""
        new = self.format.encode(x, old, LeafNoise(known, past, self.order, x))
        return placement.beside(check_stored(new, self.format, old), old.values)

    def _weigh(
        self, weight: jax.Array | None, past: ArrayLike, before: Any = None
    ) -> jax.Array:
        """Return the weight pair after this step; weight 1 if there is no average."""
        dtype = jnp.dtype("float32") if weight is None else weight.dtype
        decay = self.decay(past, dtype)
        if weight is None or decay is None:
            return jnp.array([1, 0], dtype)
        age = steps_since(past, self.accumulator.restart_every)
        if isinstance(decay, float):
            value = numerics.constant_weight(decay, optax.safe_increment(age), dtype)
            return jnp.stack([value, jnp.zeros_like(value)])
        expect_weight(weight, past, self.name, before)
        if self.accumulator.restart_every:
            weight = jnp.where(age == 0, 0, weight)
        return numerics.running_weight(weight, decay)
