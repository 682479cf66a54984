"""The batches of a run: drawn from arrays, or read from what gives them one by one."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

SPLIT_SEED = 0  # not the run's seed: runs compare on the same test examples only
CHUNK_BYTES = 2**25  # of the batches that are read ahead
BATCH = "a batch of train"


def holds_rows(data: Any) -> bool:
    """Tell whether data are arrays of examples, and not what gives batches."""
    if isinstance(data, (list, Iterator)):
        return False
    leaves = jax.tree.leaves(data)
    arrays = [hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in leaves]
    return bool(arrays) and all(arrays)


def count_rows(rows: Any, name: str) -> int:
    """Count the examples in arrays that hold one in each row."""
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(rows)]
    if len({shape[:1] for shape in shapes}) != 1 or not shapes[0]:
        raise ValueError(
            f"the arrays of {name} have the shapes {', '.join(map(str, shapes))}, but "
            "each must hold an example in each row, and as many as the others"
        )
    return shapes[0][0]


def count_tested(count: int, share: float) -> int:
    """Count the examples that are kept for testing, a share of all."""
    kept = round(count * share)
    if not 0 < kept < count:
        raise ValueError(
            f"the share kept for testing is {share}, but must leave training and test "
            f"one or more of {count} examples each"
        )
    return kept


def read_rows(data: Any, name: str) -> Any:
    """Give arrays of examples as they are, and batches joined to such arrays."""
    if not holds_rows(data):
        batches = [_to_arrays(batch, name) for batch in _iterate(data, name)]
        if not batches:
            raise ValueError(f"{name} gives no batches")
        data = jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches)
    return jax.tree.map(jnp.asarray, _to_arrays(data, name))


def _iterate(data: Any, name: str) -> Iterator[Any]:
    """Begin to read batches anew."""
    if isinstance(data, Iterator):
        raise ValueError(
            f"{name} is an iterator, which can be read only once: give what it comes "
            "from, or a function that gives one"
        )
    given = data() if callable(data) else data
    if not isinstance(given, Iterable):
        raise ValueError(
            f"{name} is of type {type(given).__name__}, but must be arrays with an "
            "example in each row, or something that gives batches"
        )
    return iter(given)


def _to_arrays(data: Any, name: str) -> Any:
    """Make arrays of what can be read as such, and refuse text and objects."""

    def convert(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array):
            return leaf
        array = np.asarray(leaf)
        if array.dtype != bool and not jnp.issubdtype(array.dtype, jnp.number):
            raise ValueError(
                f"{name} holds the dtype {array.dtype}, but must hold numbers: leave "
                "out what the loss does not read, and number what is text"
            )
        return array

    return jax.tree.map(convert, data)


class Rows:
    """Draw the batches of each epoch from arrays that hold an example in each row.

    What does not fill a batch is left out: other rows each time.
    """

    def __init__(self, rows: Any, batch_size: int, epoch_steps: int | None):
        """Take the arrays."""
        self.rows = rows
        available = count_rows(rows, "train")
        filled = available // batch_size
        self.steps = epoch_steps or filled
        if not 0 < self.steps <= filled:
            raise ValueError(
                f"batch_size is {batch_size} and epoch_steps {self.steps or 1}, but "
                f"there are only {available} training examples"
            )
        self._size = batch_size
        self.batch = jax.eval_shape(
            lambda rows: jax.tree.map(lambda x: x[:batch_size], rows), rows
        )

    def read(self, _epoch: int, _start: int) -> tuple[Any, int]:
        """Give what an epoch's batches are picked from, and the step at its end."""
        return self.rows, self.steps

    def begin(self, rows: Any, key: Array) -> Callable[[Array], Any]:
        """Give what picks a batch from the data by its number; an epoch has a key."""
        order = jax.random.permutation(key, count_rows(rows, "train"))

        def pick(number: Array) -> Any:
            size = self._size
            chosen = jax.lax.dynamic_slice_in_dim(order, number * size, size)
            return jax.tree.map(lambda x: x[chosen], rows)

        return pick


class Chunk(NamedTuple):
    """Hold some batches of an epoch."""

    batches: Any  # stacked along a new first axis
    first: Array  # the number of the first of them in the epoch


class Stream:
    """Read batches in their order, one pass after the other."""

    def __init__(self, source: Any, epoch_steps: int | None):
        """Read the first batch."""
        self._source = source
        first = next(_iterate(source, "train"), None)
        if first is None:
            raise ValueError("train gives no batches")
        first = _to_arrays(first, BATCH)
        self._kind, self._rows = describe(first), count_rows(first, BATCH)
        self.batch = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, first))
        has_length = hasattr(source, "__len__")
        self.steps = epoch_steps or (len(source) if has_length else 0)
        if not self.steps:
            raise ValueError(
                "train does not tell how many batches it has: set --epoch_steps to how "
                "many make an epoch"
            )
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(first))
        self._length = max(1, min(self.steps, CHUNK_BYTES // max(1, size)))
        self._restart()

    def read(self, epoch: int, start: int) -> tuple[Chunk, int]:
        """Give batches from a step of an epoch on, and the step before which they end.

        All chunks have the same shapes.
        """
        epoch_begin = epoch * self.steps
        begin = epoch_begin + start
        if not self._begin <= begin < self._end:
            if begin < self._begin:
                self._restart()
            end = min(begin + self._length, epoch_begin + self.steps)
            passed, taken = begin - self._end, end - self._end
            batches = [*itertools.islice(self._batches, passed, taken)]
            batches += batches[-1:] * (self._length - len(batches))
            stacked = jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *batches)
            self._chunk = Chunk(stacked, jnp.asarray(start))
            self._begin, self._end = begin, end
        return self._chunk, self._end - epoch_begin

    def begin(self, chunk: Chunk, _key: Array) -> Callable[[Array], Any]:
        """Give what picks a batch from a chunk by its number in the epoch."""
        return lambda number: jax.tree.map(
            lambda x: x[number - chunk.first], chunk.batches
        )

    def _restart(self) -> None:
        self._batches = self._read_passes()
        self._begin = self._end = 0  # of the chunk, in batches since the first pass

    def _read_passes(self) -> Iterator[Any]:
        while True:
            given = False
            for number, batch in enumerate(_iterate(self._source, "train"), start=1):
                batch = _to_arrays(batch, BATCH)
                if count_rows(batch, BATCH) < self._rows:
                    continue
                if describe(batch) != self._kind:
                    raise ValueError(
                        f"batch {number} of train is {describe(batch)}, but the first "
                        f"one is {self._kind}: all must be alike"
                    )
                given = True
                yield batch
            if not given:
                raise ValueError("train gives no batches")


def describe(batch: Any) -> str:
    """Write the dtype and the shape of each array."""
    return str(jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", batch))
