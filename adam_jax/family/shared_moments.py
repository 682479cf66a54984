"""Optimizers in which elements of a leaf share second moments, one or a few each."""

from collections.abc import Sequence

import optax

from adam_jax.family.chaining import chain
from adam_jax.hyperparams import Hyperparam, check_decay, exact
from adam_jax.moments.accumulators import check_initial, total
from adam_jax.moments.maxima import axis_maxima
from adam_jax.moments.sharing import mean_over
from adam_jax.moments.squares import squared_norm
from adam_jax.moments.storage import Storage
from adam_jax.stages.correction import bias_correct
from adam_jax.stages.division import precondition
from adam_jax.stages.gathering import scale_by_moments
from adam_jax.stages.holding import average_updates, scale_by_trace
from adam_jax.stages.updates import add_decayed_weights, scale_by_lr


def adam_mini(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.9),
    b2: Hyperparam = exact(0.999),
    eps: Hyperparam = exact(1e-8),
    eps_root: Hyperparam = exact(0.0),
    mu_dtype: Storage = None,
    *,
    axes: int | Sequence[int] | None = (-1,),
) -> optax.GradientTransformation:
    """Build Adam-mini: Adam with one second moment for each block of elements.

        nu <- b2 * nu + (1 - b2) * mean(g^2)    over the block
        params <- params - learning_rate * mu_hat / (sqrt(nu_hat + eps_root) + eps)

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root of nu, >= 0, in units of the gradient.
      eps_root: added inside the root, >= 0, in units of the gradient squared.
      mu_dtype: how mu is stored: a dtype, a `Format` or the name of one ("float32",
        "bfloat16", "8bit"). None means the parameters' dtype, float32 or wider.
      axes: the axes along which a block extends, an int or several; None means all, so
        that a leaf is one block. Axes that a leaf does not have are left out.

    Raises:
      ValueError: if a hyperparameter is out of range, or axes are not integers.

    Example: the gradients 3 and 4 share the root mean square 3.5355.

      >>> import jax.numpy as jnp
      >>> tx = adam_mini(1e-3)
      >>> updates, _ = tx.update(jnp.array([3.0, 4.0]), tx.init(jnp.zeros(2)))
      >>> print(updates)
      [-0.00084853 -0.00113137]

    When: Half of Adam's state, where elements of a block have like gradients: in
    transformers, its paper claims, at no loss. The blocks must be chosen to fit the
    model; elements of other scales in one block get steps that are too long or too
    short.

    Reference: Zhang et al. 2024 (arXiv:2406.16793), Algorithm 1.

    Differs from the paper, which chooses the blocks by the kind of layer (a head of
    attention, an output neuron, a token): here each row is one, whose elements follow
    one another along the last axis. A kernel of Flax, (in, out), has its output neurons
    in columns: axes=-2.
    Differs from Optax as `adam` does.
    """
    return chain(
        "adam_mini",
        scale_by_moments(
            b1=check_decay("b1", b1),
            b2=check_decay("b2", b2),
            mu_dtype=mu_dtype,
            nu_dtype=mean_over(axes),
        ),
        bias_correct(),
        precondition(eps=eps, eps_root=eps_root),
        scale_by_lr(learning_rate),
    )


def rowwise_adagrad(
    learning_rate: Hyperparam,
    initial_accumulator_value: Hyperparam = exact(0.0),
    eps: Hyperparam = exact(1e-8),
) -> optax.GradientTransformation:
    """Build row-wise AdaGrad: AdaGrad with one sum of squares a row, for embeddings.

        nu <- nu + mean(g^2)                    over the last axis
        params <- params - learning_rate * g / (sqrt(nu) + eps)

    A row that gets no gradient, such as a token that does not occur, stays in place.

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
      initial_accumulator_value: nu before the first gradient, >= 0, in units of the
        gradient squared; not a schedule.
      eps: added to the root of nu, >= 0, in units of the gradient.

    Raises:
      ValueError: if a hyperparameter is out of range.

    Example: the gradients 3 and 4 share the root mean square 3.5355.

      >>> import jax.numpy as jnp
      >>> tx = rowwise_adagrad(0.1)
      >>> updates, _ = tx.update(jnp.array([3.0, 4.0]), tx.init(jnp.zeros(2)))
      >>> print(updates)
      [-0.08485281 -0.11313709]

    When: Embedding tables: one number a row. No help where elements of a row differ in
    scale, or in long training: as AdaGrad's, its steps only ever shrink.

    Reference: Duchi, Hazan & Singer 2011, Figure 1, with one step size a row as in
    FBGEMM's `rowwise_adagrad`.

    Differs from `adagrad` in its defaults too: nu starts at 0, eps is outside the root.
    """
    initial = check_initial("initial_accumulator_value", initial_accumulator_value)
    return chain(
        "rowwise_adagrad",
        scale_by_moments(b1=None, b2=total(initial), nu_dtype=mean_over(-1)),
        precondition(eps=eps),
        scale_by_lr(learning_rate),
    )


def sm3(
    learning_rate: Hyperparam,
    momentum: Hyperparam = exact(0.9),
    *,
    mu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Build SM3: AdaGrad whose sums are bounded by maxima of rows and columns.

        nu <- min(maxima of nu along each axis) + g^2
        mu <- momentum * mu + (1 - momentum) * g / sqrt(nu + 1e-8)
        params <- params - learning_rate * mu

    Of nu, a matrix keeps the maxima of its rows and those of its columns.

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
      momentum: decay rate of mu, in [0, 1).
      mu_dtype: how mu is stored: a dtype, a `Format` or the name of one ("float32",
        "bfloat16", "8bit"). None means the parameters' dtype, float32 or wider.

    Raises:
      ValueError: if a hyperparameter is out of range.

    Example: the second step of 2 x 2 elements. The one at the upper right, whose first
    gradient was 0, is bounded by the maxima of its row, 1, and of its column, 4.

      >>> import jax.numpy as jnp
      >>> tx = sm3(0.1, momentum=0.0)
      >>> state = tx.init(jnp.zeros((2, 2)))
      >>> for grads in ([[1.0, 0.0], [0.0, 2.0]], [[1.0, 1.0], [1.0, 1.0]]):
      ...     updates, state = tx.update(jnp.array(grads), state)
      >>> print(updates)  # -0.1 / sqrt(2), and -0.1 / sqrt(5)
      [[-0.07071068 -0.07071068]
       [-0.07071068 -0.04472136]]

    When: AdaGrad for the memory of the momentum and a few vectors. Its bounds are
    loose, and its steps too short, where rows and columns have nothing in common.

    Reference: Anil et al. 2019 (arXiv:1901.11150), Algorithm SM3-II, with the cover and
    the momentum of section 4.

    Differs from Optax as `adam` does, and takes schedules, complex leaves and scalars.
    """
    return chain(
        "sm3",
        scale_by_moments(b1=None, b2=total(), nu_dtype=axis_maxima()),
        precondition(eps=0.0, eps_root=1e-8),
        average_updates(
            check_decay("momentum", momentum), mu_dtype, argument="mu_dtype"
        ),
        scale_by_lr(learning_rate),
    )


def novograd(
    learning_rate: Hyperparam,
    b1: Hyperparam = exact(0.9),
    b2: Hyperparam = exact(0.25),
    eps: Hyperparam = exact(1e-6),
    eps_root: Hyperparam = exact(0.0),
    weight_decay: Hyperparam = exact(0.0),
    *,
    mu_dtype: Storage = None,
) -> optax.GradientTransformation:
    """Build NovoGrad: momentum of gradients, each leaf divided by its average norm.

        nu <- b2 * nu + (1 - b2) * |g|^2        of the whole leaf; |g|^2 at first
        mu <- b1 * mu + g / (sqrt(nu + eps_root) + eps) + weight_decay * params
        params <- params - learning_rate * mu

    Args:
      learning_rate: the step size, >= 0: a float, a 0-d array or a schedule (a function
        of the step count, 0 at the first step). The other numbers may be any of these.
      b1: decay rate of the trace mu, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root of nu, >= 0, in units of the gradient.
      eps_root: added inside the root, >= 0, in units of the gradient squared.
      weight_decay: >= 0. `weight_decay * params` is added to the trace, not the step.
      mu_dtype: how mu is stored: a dtype, a `Format` or the name of one ("float32",
        "bfloat16", "8bit"). None means the parameters' dtype, float32 or wider.

    Raises:
      ValueError: if a hyperparameter is out of range, or update() lacks params.

    Example: the gradients 3 and 4 have the norm 5.

      >>> import jax.numpy as jnp
      >>> tx, params = novograd(0.1), jnp.zeros(2)
      >>> updates, _ = tx.update(jnp.array([3.0, 4.0]), tx.init(params), params)
      >>> print(f"{updates[0]:.4f} {updates[1]:.4f}")
      -0.0600 -0.0800

    When: One number a leaf beside the momentum: its paper claims results like Adam's on
    speech and images. Elements of a leaf share one step size, so it is no help where
    their scales differ.

    Reference: Ginsburg et al. 2019 (arXiv:1905.11286), Algorithm 1.

    Differs from Optax as `adam` does.
    """
    return chain(
        "novograd",
        scale_by_moments(
            b1=None, b2=squared_norm(check_decay("b2", b2)), nu_dtype=mean_over()
        ),
        precondition(eps=eps, eps_root=eps_root),
        add_decayed_weights(weight_decay),
        scale_by_trace(
            check_decay("b1", b1), accumulator_dtype=mu_dtype, argument="mu_dtype"
        ),
        scale_by_lr(learning_rate),
    )
