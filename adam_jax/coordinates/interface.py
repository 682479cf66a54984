"""What coordinates are: how a leaf enters them, and leaves them."""

import abc
from typing import Any, ClassVar

import jax


class Coordinates(abc.ABC):
    """Coordinates in which the stages of `within` work. Derive from it for your own.

    Every method is of one leaf. What a leaf keeps from step to step is a dict of
    arrays. An empty dict means that its coordinates are its own axes: then no other
    method is called.

    Attributes:
      waits: (class attribute) the number of steps at the start that only `advance`, in
        which no parameter moves.
      turns: (class attribute) whether first moments follow when the coordinates change.
        Then `follow` and `changes` must be defined.

    Example: gradients of matrices, each column relative to the mean of its rows.

      >>> class Centered(Coordinates):
      ...     def init(self, param):
      ...         return {"mean": jnp.zeros(param.shape[-1:])} if param.ndim > 1 else {}
      ...
      ...     def advance(self, kept, grad, past):
      ...         return {"mean": grad.mean(0)}
      ...
      ...     def enter(self, kept, x):
      ...         return x - kept["mean"]
      ...
      ...     def leave(self, kept, x, past):
      ...         return x

      >>> import jax.numpy as jnp
      >>> from adam_jax import scale_by_lr, within
      >>> tx = within(Centered(), scale_by_lr(1.0))
      >>> param = jnp.zeros((2, 1))
      >>> print(tx.update(jnp.array([[1.0], [4.0]]), tx.init(param))[0].ravel())
      [ 1.5 -1.5]
    """

    waits: ClassVar[int] = 0
    turns: ClassVar[bool] = False

    @abc.abstractmethod
    def init(self, param: Any) -> dict[str, jax.Array]:
        """Return what a leaf keeps, before the first step.

        Args:
          param: an array, or a `jax.ShapeDtypeStruct`.
        """

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of a leaf in these coordinates; by default its own.

        Args:
          shape: its own.
        """
        return shape

    @abc.abstractmethod
    def advance(
        self, kept: dict[str, jax.Array], grad: jax.Array, past: Any
    ) -> dict[str, jax.Array]:
        """Return what a leaf keeps after one more gradient.

        Args:
          kept: what it keeps so far.
          grad: the gradient, float32 or wider, bounded as `scale_by_moments` does.
          past: int32 scalar, the number of steps before this one.
        """

    @abc.abstractmethod
    def enter(self, kept: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        """Return a gradient in these coordinates.

        Args:
          kept: what `advance` returned in this step.
          x: the gradient, float32 or wider.
        """

    @abc.abstractmethod
    def leave(self, kept: dict[str, jax.Array], x: jax.Array, past: Any) -> jax.Array:
        """Return an update in the coordinates of the parameters.

        Args:
          kept: what `advance` returned in this step.
          x: the update in these coordinates, float32 or wider.
          past: int32 scalar, the number of steps before this one.
        """

    def changes(self, past: Any) -> Any:
        """Return whether `advance` changes the coordinates in this step, a bool scalar.

        Args:
          past: int32 scalar, the number of steps before this one.
        """
        raise NotImplementedError("coordinates that turn must say when.")

    def follow(
        self, old: dict[str, jax.Array], new: dict[str, jax.Array], x: jax.Array
    ) -> jax.Array:
        """Return a first moment in the new coordinates.

        Args:
          old: what the leaf kept before this step.
          new: what it keeps now.
          x: the moment in the old coordinates, float32 or wider.
        """
        raise NotImplementedError("coordinates that turn must say how.")
