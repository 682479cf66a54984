"""What the tests run over: optimizers and chains by name, and whole trajectories."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracle import trajectory

import adam_jax
from adam_jax import (
    add_decayed_weights,
    bias_correct,
    correct_step_size,
    precondition,
    running_max,
    scale_by_lr,
    scale_by_moments,
)


def adam_eps_hat(learning_rate, b1=0.9, b2=0.999, eps=1e-8):
    return optax.chain(
        scale_by_moments(b1, b2),
        correct_step_size(),
        precondition(eps),
        scale_by_lr(learning_rate),
    )


def adam_l2(learning_rate, weight_decay=1e-4, **kwargs):
    return optax.chain(
        add_decayed_weights(weight_decay), adam_jax.adam(learning_rate, **kwargs)
    )


def amsgrad_raw(learning_rate, b1=0.9, b2=0.999, eps=1e-8):
    return optax.chain(
        scale_by_moments(b1, b2),
        running_max(),
        bias_correct(),
        precondition(eps),
        scale_by_lr(learning_rate),
    )


def ema(learning_rate, decay=0.9):
    return optax.chain(
        scale_by_moments(decay, None), bias_correct(), scale_by_lr(learning_rate)
    )


# Everything that the oracle knows: the table, and the variants that are chains.
MAKERS = adam_jax.OPTIMIZERS | {
    "adam_eps_hat": adam_eps_hat,
    "adam_l2": adam_l2,
    "amsgrad_raw": amsgrad_raw,
    "ema": ema,
}


# Those from which the others descend: they are crossed with everything.
OLDEST = [*adam_jax.OPTIMIZERS][:15]

# One of each kind: `make test` runs these through everything, `make crossings` all.
OFTEN = {
    *("sgd", "adagrad", "rmsprop", "adam", "adamw", "nadam", "amsgrad", "adamax"),
    *("adabelief", "radam", "yogi", "lion", "adopt", "adan", "stable_spam", "madgrad"),
    *("cautious_adamw", "came", "muon", "soap", "schedule_free_adamw", "prodigy"),
}


def often(names):
    """Return names as parameters; those that are not in OFTEN are crossings."""
    crossing = pytest.mark.crossing
    return [pytest.param(x, marks=() if x in OFTEN else crossing) for x in names]


# They look at whole leaves, which packed() would merge.
LEAFWISE = ("cautious_adamw", "lamb", "lars", "stable_adamw")
LEAFWISE += ("soap", "shampoo", "muon", "normuon", "adamuon", "adafactor", "came")
LEAFWISE += ("adam_hyperball", "mars_adamw", "galore_adamw")


def rising(count):
    """A schedule for decays, of Python numbers and of arrays."""
    return 0.95 - 0.5 / (2.0 + count)


def falling(count):
    """A schedule for everything that is not a decay."""
    return 1e-2 / (1.0 + 0.1 * count)


CASES = [
    ("sgd", {}),
    ("sgd", {"momentum": 0.9}),
    ("sgd", {"momentum": 0.9, "nesterov": True}),
    ("sgd", {"momentum": rising, "nesterov": True}),
    ("adagrad", {}),
    ("adagrad", {"initial_accumulator_value": 0.0, "eps": 0.0}),
    ("rmsprop", {}),
    ("rmsprop", {"eps_in_sqrt": False, "initial_scale": 1.0}),
    ("rmsprop", {"bias_correction": True, "momentum": 0.9, "nesterov": True}),
    ("rmsprop", {"centered": True, "momentum": 0.9, "eps": 1e-3}),
    ("rmsprop", {"decay": rising, "bias_correction": True}),
    ("adam", {}),
    ("adam", {"b2": 0.99, "eps": 1e-3, "eps_root": 1e-4}),
    ("adam", {"b1": 0.0}),
    ("adam", {"b1": rising, "b2": rising, "eps": falling, "learning_rate": falling}),
    ("simplified_adam", {}),
    ("adam_eps_hat", {"eps": 1e-3}),
    ("adam_l2", {"weight_decay": 0.1}),
    ("adamw", {"weight_decay": 0.1}),
    ("adamw", {"weight_decay": falling, "learning_rate": falling}),
    ("nadam", {}),
    ("nadam", {"b1": rising}),
    ("nadamw", {"weight_decay": 0.1}),
    ("amsgrad", {}),
    ("amsgrad", {"bias_correction_mu": False, "bias_correction_nu": False}),
    ("amsgrad_raw", {}),
    ("adamax", {}),
    ("adamax", {"eps": falling, "b2": 0.9}),
    ("adamaxw", {"weight_decay": 0.1}),
    ("adabelief", {}),
    ("adabelief", {"eps_root": 1e-4, "nesterov": True}),
    ("radam", {}),
    ("radam", {"b2": 0.99, "threshold": 4.0, "nesterov": True, "eps_root": 1e-4}),
    ("yogi", {}),
    ("lion", {"weight_decay": 0.1}),
    ("ema", {}),
    ("laprop", {}),
    ("laprop", {"b2": 0.99, "eps": 1e-3, "eps_root": 1e-4}),
    ("laprop", {"b1": rising, "b2": rising, "eps": falling, "learning_rate": falling}),
    ("adopt", {}),
    ("adopt", {"use_clipping": False, "b2": 0.99, "eps": 1e-3}),
    ("adopt", {"clip_value_fn": falling, "nesterov": True}),
    ("adopt", {"b1": rising, "b2": rising, "eps": falling, "learning_rate": falling}),
    ("acprop", {}),
    ("acprop", {"eps": 1e-3, "eps_root": 1e-4, "weight_decay": 0.1}),
    ("acprop", {"b1": rising, "b2": rising, "eps": falling, "learning_rate": falling}),
    ("grokfast_adamw", {}),
    ("grokfast_adamw", {"slow_decay": 0.9, "slow_weight": 0.5, "eps_root": 1e-4}),
    ("grokfast_adamw", {"slow_decay": rising, "slow_weight": falling, "b1": rising}),
    ("grokfast_adamw", {"weight_decay": falling, "learning_rate": falling}),
    ("qhadam", {}),
    ("qhadam", {"v1": 0.4, "v2": 0.6, "eps": 1e-3, "eps_root": 1e-4}),
    ("qhadam", {"b1": rising, "b2": rising, "v1": rising, "v2": falling}),
    ("ademamix", {}),
    ("ademamix", {"b3": 0.99, "alpha": 2.0, "eps_root": 1e-4, "weight_decay": 0.1}),
    ("ademamix", {"b1": rising, "b2": rising, "b3": rising, "alpha": falling}),
    ("simplified_ademamix", {}),
    ("simplified_ademamix", {"alpha": 5.0, "eps": 1e-3, "weight_decay": 0.1}),
    ("simplified_ademamix", {"b1": rising, "b2": rising, "alpha": falling}),
    ("adan", {}),
    ("adan", {"b2": 0.7, "eps": 1e-3, "eps_root": 1e-4, "weight_decay": 0.1}),
    ("adan", {"b1": rising, "b2": rising, "b3": rising, "learning_rate": falling}),
    ("adapnm", {}),
    ("adapnm", {"b1": 0.5, "b0": 0.3, "eps": 1e-3, "eps_root": 1e-4}),
    ("adapnm", {"b2": rising, "eps": falling, "learning_rate": falling}),
    ("aggmo", {}),
    ("aggmo", {"decays": (0.5, 0.95), "learning_rate": falling}),
    ("optimistic_adam", {}),
    ("optimistic_adam", {"optimism": 0.5, "nesterov": False, "eps_root": 1e-4}),
    ("optimistic_adam", {"b1": rising, "b2": rising, "optimism": falling}),
    ("padam", {}),
    ("padam", {"partial": 0.4, "b2": 0.9, "eps": 1e-3}),
    ("padam", {"partial": falling, "b1": rising, "b2": rising}),
    ("adam_atan2", {}),
    ("adam_atan2", {"a": 1.27, "b": 2.0, "weight_decay": 0.1}),
    ("adam_atan2", {"b1": rising, "b2": rising, "b": rising}),
    ("adam_atan2", {"a": falling, "weight_decay": falling, "learning_rate": falling}),
    ("diffgrad", {}),
    ("diffgrad", {"b1": 0.5, "eps": 1e-3, "eps_root": 1e-4}),
    ("diffgrad", {"b1": rising, "b2": rising, "learning_rate": falling}),
    ("adadelta", {}),
    ("adadelta", {"learning_rate": 1.0, "rho": 0.99, "weight_decay": 0.1}),
    ("adadelta", {"learning_rate": falling, "rho": rising, "eps": falling}),
    ("madgrad", {}),
    ("madgrad", {"momentum": 0.0, "eps": 1e-3, "weight_decay": 0.1}),
    ("madgrad", {"momentum": rising, "learning_rate": falling}),
    ("adabound", {}),
    ("adabound", {"final_lr": 1e-2, "gamma": 0.1, "eps": 1e-3}),
    ("adabound", {"b1": rising, "b2": rising, "final_lr": falling}),
    ("adabound", {"learning_rate": falling, "b1": 0.5}),
    ("adamod", {}),
    ("adamod", {"b2": 0.99, "b3": 0.9, "eps": 1e-3}),
    ("adamod", {"b1": rising, "b2": rising, "b3": rising, "learning_rate": falling}),
    ("signum", {}),
    ("signum", {"beta": rising, "learning_rate": falling}),
    ("tiger", {}),
    ("tiger", {"b1": rising, "weight_decay": 0.1}),
    ("tiger", {"weight_decay": falling, "learning_rate": falling}),
    ("grams", {}),
    ("grams", {"eps": 1e-3, "eps_root": 1e-4, "weight_decay": 0.1}),
    ("grams", {"b1": rising, "b2": rising, "weight_decay": falling}),
    ("cautious_decay_adamw", {}),
    ("cautious_decay_adamw", {"eps_root": 1e-4, "weight_decay": 10.0}),
    ("cautious_decay_adamw", {"b1": rising, "weight_decay": falling}),
]


def halving(count):
    """A schedule whose values float32 and float64 compute alike."""
    return 0.01 * 0.5 ** (count // 20)


def quartered(count):
    """Another one, for methods that find their own rate."""
    return 1.0 - 0.75 * (count >= 50)


# Of methods whose step depends on a whole leaf: name, its shape, hyperparameters.
ARRAY_CASES = [
    ("mars_adamw", (4, 6), {}),
    ("mars_adamw", (4, 6), {"gamma": 0.5, "b1": rising}),
    ("mars_adamw", (5,), {"weight_decay": 0.1, "eps_root": 1e-4}),
    ("stable_spam", (4, 6), {}),
    ("stable_spam", (4, 6), {"reset_every": 20}),
    ("stable_spam", (5,), {"clip_decay": 0.5, "norm_b1": 0.9, "norm_b2": 0.5}),
    ("stable_adamw", (4, 6), {}),
    ("stable_adamw", (8, 8), {"b2": 0.9, "weight_decay": 0.5}),
    ("lamb", (4, 6), {}),
    ("lamb", (4, 6), {"weight_decay": 0.1, "eps_root": 1e-4}),
    ("lars", (4, 6), {}),
    (
        "lars",
        (5,),
        {"weight_decay": 0.1, "nesterov": True, "trust_coefficient": 0.1, "eps": 1e-3},
    ),
    ("cautious_adamw", (4, 6), {}),
    ("cautious_adamw", (5,), {"weight_decay": 0.1, "b1": 0.5}),
    ("adafactor", (4, 6), {"min_dim_size_to_factor": 2}),
    ("adafactor", (3, 5, 4), {"min_dim_size_to_factor": 2}),
    ("adafactor", (4, 6), {}),
    (
        "adafactor",
        (4, 6),
        {
            "min_dim_size_to_factor": 2,
            "momentum": 0.9,
            "weight_decay_rate": 1e-3,
            "decay_rate": 0.7,
            "clipping_threshold": 0.5,
        },
    ),
    (
        "adafactor",
        (5,),
        {
            "min_dim_size_to_factor": 2,
            "multiply_by_parameter_scale": False,
            "clipping_threshold": None,
        },
    ),
    ("adam_mini", (4, 6), {}),
    ("adam_mini", (4, 6), {"axes": None}),
    ("adam_mini", (3, 4, 5), {"axes": (0, 2), "b2": 0.9}),
    ("rowwise_adagrad", (4, 6), {}),
    ("rowwise_adagrad", (3, 4, 5), {"initial_accumulator_value": 0.1, "eps": 1e-3}),
    ("rowwise_adagrad", (5,), {}),
    ("sm3", (4, 6), {}),
    ("sm3", (3, 4, 5), {"momentum": 0.5}),
    ("sm3", (5,), {}),
    ("novograd", (4, 6), {}),
    ("novograd", (5,), {"b2": 0.9, "weight_decay": 0.01, "eps_root": 1e-4}),
    ("came", (4, 6), {"min_dim_size_to_factor": 2}),
    ("came", (4, 6), {}),
    (
        "came",
        (3, 5, 4),
        {
            "min_dim_size_to_factor": 2,
            "b3": 0.9,
            "clipping_threshold": 0.5,
            "weight_decay": 0.1,
        },
    ),
    ("schedule_free_adamw", (4, 6), {}),
    (
        "schedule_free_adamw",
        (5,),
        {"warmup_steps": 16, "weight_decay": 0.1, "b1": 0.95, "weight_lr_power": 1.0},
    ),
    ("schedule_free_radam", (4, 6), {}),
    ("schedule_free_radam", (5,), {"silent": False, "weight_decay": 0.1, "b2": 0.9}),
    ("lookahead", (4, 6), {}),
    ("lookahead", (5,), {"sync_period": 5, "slow_step_size": 0.8, "b1": 0.5}),
    ("lookahead", (4, 6), {"learning_rate": halving}),
    ("prodigy", (4, 6), {"learning_rate": 1.0}),
    (
        "prodigy",
        (5,),
        {
            "learning_rate": 1.0,
            "weight_decay": 0.1,
            "safeguard_warmup": True,
            "beta3": 0.9,
            "estim_lr0": 1e-3,
            "estim_lr_coef": 2.0,
        },
    ),
    ("prodigy", (4, 6), {"learning_rate": quartered}),
    ("adam_hyperball", (4, 6), {}),
    ("adam_hyperball", (3, 4, 5), {"learning_rate": 0.3}),
    ("adam_hyperball", (5,), {}),
    ("swats", (4, 6), {}),
    ("swats", (4, 6), {"tolerance": 1e-3}),
    ("swats", (8, 8), {"tolerance": 1e-3, "learning_rate": halving, "b1": 0.5}),
    ("muon", (4, 6), {}),
    ("muon", (6, 4), {}),
    ("muon", (5,), {}),
    ("muon", (8, 8), {"nesterov": False, "adaptive": True, "weight_decay": 0.1}),
    ("muon", (4, 6), {"consistent_rms": 0.2, "ns_steps": 3, "beta": 0.9}),
    ("muon", (3, 4, 5), {"adam_learning_rate": 1e-3, "adam_weight_decay": 0.1}),
    ("normuon", (4, 6), {}),
    ("normuon", (4, 6), {"axes": -2, "nesterov": True, "weight_decay": 0.1}),
    ("normuon", (6, 4), {"b2": 0.5}),
    ("normuon", (5,), {"weight_decay": 0.1}),
    ("adamuon", (4, 6), {}),
    ("adamuon", (8, 8), {"beta": 0.8, "nesterov": True, "weight_decay": 0.1}),
    ("adamuon", (5,), {}),
    ("soap", (8, 8), {}),
    ("soap", (8, 8), {"precondition_frequency": 1, "b1": 0.9, "b2": 0.8}),
    ("soap", (4, 6), {"max_size": 5}),
    ("soap", (5,), {}),
    ("galore_adamw", (4, 6), {"rank": 2}),
    (
        "galore_adamw",
        (6, 4),
        {"rank": 2, "update_gap": 7, "weight_decay": 0.1, "scale": 1.0},
    ),
    ("galore_adamw", (8, 8), {}),
    ("galore_adamw", (5,), {}),
    ("shampoo", (4, 6), {}),
    ("shampoo", (8, 8), {"momentum": 0.9, "eps": 1e-2, "update_every": 5}),
    ("shampoo", (3, 4, 5), {}),
    ("shampoo", (5,), {}),
]


def beside_oracle(case, steps=200):
    """Return the updates of an optimizer in float64, and those of its oracle.

    Args:
      case: a row of CASES or ARRAY_CASES.
      steps: the number of steps.
    """
    name, *shape, kwargs = case
    kwargs = {"learning_rate": 1e-2} | kwargs
    if name == "prodigy":  # later its parameters are thousands, and its steps likewise
        steps = min(steps, 40)
    if shape:
        params, grads = leaf_gradients(*shape, steps)
    else:
        params, grads = np.linspace(-1, 1, 6), gradients(steps)
    expected, _ = trajectory(name, grads, params, **kwargs)
    # By default Adafactor's momentum is float32, as in Optax.
    wide = {"dtype_momentum": "float64"} if name == "adafactor" else {}
    with jax.enable_x64(True):
        tx = MAKERS[name](**kwargs, **wide)
        updates, _, _ = run(tx, jnp.asarray(grads), params)
    return updates, expected


def from_json(kwargs):
    """Return keyword arguments that JSON held: its lists were tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in kwargs.items()}


def case_id(case):
    """Name a case after its optimizer, its shape if any, and its hyperparameters."""
    *name, kwargs = case
    return "-".join(
        [
            *map(str, name),
            *(f"{k}={getattr(v, '__name__', v)}" for k, v in kwargs.items()),
        ]
    )


def first_often(cases):
    """Return cases as parameters; between first and last, they are crossings."""
    names = [case[0] for case in cases]
    last = {name: number for number, name in enumerate(names)}
    return [
        pytest.param(
            case,
            marks=()
            if number in (names.index(case[0]), last[case[0]])
            else pytest.mark.crossing,
            id=case_id(case),
        )
        for number, case in enumerate(cases)
    ]


def gradients(steps, seed=0):
    """Gradients of shape (steps, 6) whose scales span eight decades, zeros among them.

    The last coordinate is silent for the first half: sparse.
    """
    rng = np.random.default_rng(seed)
    grads = rng.normal(size=(steps, 6)) * np.array([1e-6, 1e-3, 1, 10, 100, 1])
    grads[rng.random(grads.shape) < 0.1] = 0
    grads[: steps // 2, -1] = 0
    return grads


@functools.partial(jax.jit, static_argnums=0)
def _scan(tx, grads, params):
    def step(carry, grad):
        params, state = carry
        updates, state = tx.update(grad, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (updates, params)

    (_, state), (updates, params) = jax.lax.scan(step, (params, tx.init(params)), grads)
    return updates, params, state


def run(tx, grads, params):
    """Return the updates and parameters of every step, and the last state, as NumPy."""
    return jax.tree.map(np.asarray, _scan(tx, grads, params))


def leaf_gradients(shape, steps=200, seed=0):
    """Initial values of a leaf, and gradients with a trend, whose scales vary.

    Returns:
      Arrays of shape `shape` and (steps, *shape).
    """
    rng = np.random.default_rng(seed)
    params = rng.normal(size=shape)
    scales = np.exp(rng.normal(size=(steps,) + (1,) * len(shape)))
    grads = rng.normal(size=(steps, *shape)) * scales
    return params, grads + 0.3 * rng.normal(size=shape)
