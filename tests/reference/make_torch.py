"""Write torch.npz: trajectories of PyTorch's optimizers on stored gradients.

Made with PyTorch 2.13.0 on CPU. To make it again:

    python3.11 -m venv /tmp/vtorch
    /tmp/vtorch/bin/pip install torch==2.13.0 numpy
    /tmp/vtorch/bin/python tests/reference/make_torch.py

The file holds float64 arrays and one JSON string:

    grads            (steps, coordinates)   the gradient of every step
    params0          (coordinates,)         the parameters before the first step
    params/<case>    (steps, coordinates)   the parameters after every step
    cases            JSON: {<case>: {"optimizer", "kwargs", "in_optax", "torch"}}
    torch_version    "2.13.0"

`optimizer` and `kwargs` are the call that must agree, in Optax's argument names;
`in_optax` says whether Optax has that optimizer under that name. `torch` is the call
that was made. Where the two place eps differently, eps is 0 or too small to matter.
"""

import json
from pathlib import Path

import numpy as np
import torch

LR = 0.01
STEPS = 60
SCALES = np.array([1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0])
SPARSE = 3  # this coordinate sees no gradient before step 40
ADAM = {"b1": 0.9, "b2": 0.999, "eps": 1e-8}
FAST = {"b1": 0.8, "b2": 0.99, "eps": 1e-3}
# Where the definitions put eps in different places, it must not show.
TINY = 1e-30


def make_grads():
    """Return drifting, noisy gradients; one step in ten is exactly zero."""
    rng = np.random.default_rng(0)
    shape = (STEPS, len(SCALES))
    drift = np.cos(np.arange(STEPS)[:, None] / 9.0 + np.arange(len(SCALES)))
    grads = SCALES * (drift + rng.normal(size=shape))
    grads[rng.random(shape) < 0.1] = 0.0
    grads[:40, SPARSE] = 0.0
    return grads


def moments(hyper):
    """Return Adam's hyperparameters in PyTorch's argument names."""
    return {"betas": (hyper["b1"], hyper["b2"]), "eps": hyper["eps"]}


# name: (Optax's name and arguments, PyTorch's class and arguments)
CASES = {
    "sgd": ("sgd", {}, "SGD", {}),
    "sgd_momentum": ("sgd", {"momentum": 0.9}, "SGD", {"momentum": 0.9}),
    "sgd_nesterov": (
        "sgd",
        {"momentum": 0.9, "nesterov": True},
        "SGD",
        {"momentum": 0.9, "nesterov": True},
    ),
    # PyTorch adds eps to the root, Optax to the sum under it.
    "adagrad": (
        "adagrad",
        {"initial_accumulator_value": 0.1, "eps": 0.0},
        "Adagrad",
        {"initial_accumulator_value": 0.1, "eps": 0.0},
    ),
    "adagrad_from_zero": (
        "adagrad",
        {"initial_accumulator_value": 0.0, "eps": TINY},
        "Adagrad",
        {"initial_accumulator_value": 0.0, "eps": TINY},
    ),
    "rmsprop": (
        "rmsprop",
        {"decay": 0.9, "eps": 1e-8, "eps_in_sqrt": False},
        "RMSprop",
        {"alpha": 0.9, "eps": 1e-8},
    ),
    "rmsprop_large_eps": (
        "rmsprop",
        {"decay": 0.99, "eps": 1e-3, "eps_in_sqrt": False},
        "RMSprop",
        {"alpha": 0.99, "eps": 1e-3},
    ),
    "rmsprop_centered": (
        "rmsprop",
        {"decay": 0.9, "eps": 1e-8, "eps_in_sqrt": False, "centered": True},
        "RMSprop",
        {"alpha": 0.9, "eps": 1e-8, "centered": True},
    ),
    # PyTorch scales by lr after the momentum, Optax before: one for a constant lr.
    "rmsprop_momentum": (
        "rmsprop",
        {"decay": 0.9, "eps": 1e-8, "eps_in_sqrt": False, "momentum": 0.9},
        "RMSprop",
        {"alpha": 0.9, "eps": 1e-8, "momentum": 0.9},
    ),
    "adam": ("adam", ADAM, "Adam", moments(ADAM)),
    "adam_fast": ("adam", FAST, "Adam", moments(FAST)),
    "adam_l2": (
        "adam_l2",
        {**ADAM, "weight_decay": 0.1},
        "Adam",
        {**moments(ADAM), "weight_decay": 0.1},
    ),
    "adamw": (
        "adamw",
        {**ADAM, "weight_decay": 0.1},
        "AdamW",
        {**moments(ADAM), "weight_decay": 0.1},
    ),
    "adamw_fast": (
        "adamw",
        {**FAST, "weight_decay": 0.01},
        "AdamW",
        {**moments(FAST), "weight_decay": 0.01},
    ),
    # Optax's amsgrad takes the maximum of the corrected nu: not this.
    "amsgrad_raw": (
        "amsgrad_raw",
        ADAM,
        "Adam",
        {**moments(ADAM), "amsgrad": True},
    ),
    "amsgrad_raw_fast": (
        "amsgrad_raw",
        FAST,
        "Adam",
        {**moments(FAST), "amsgrad": True},
    ),
    "adamax": ("adamax", ADAM, "Adamax", moments(ADAM)),
    "adamax_fast": ("adamax", FAST, "Adamax", moments(FAST)),
    # PyTorch adds eps to the root of the raw nu, Optax to that of the corrected one.
    "radam": (
        "radam",
        {**ADAM, "eps": TINY},
        "RAdam",
        moments({**ADAM, "eps": TINY}),
    ),
    # PyTorch's schedule b1*(1 - 0.96^(t*momentum_decay)/2) is b1 once 0.96^... is 0.
    "nadam": ("nadam", ADAM, "NAdam", {**moments(ADAM), "momentum_decay": 1e6}),
    "nadamw": (
        "nadamw",
        {**FAST, "weight_decay": 0.1},
        "NAdam",
        {
            **moments(FAST),
            "momentum_decay": 1e6,
            "weight_decay": 0.1,
            "decoupled_weight_decay": True,
        },
    ),
}
NOT_IN_OPTAX = {"adam_l2", "amsgrad_raw"}


def run(optimizer, kwargs, grads, params0):
    """Return PyTorch's parameters after every step, (steps, coordinates)."""
    param = torch.nn.Parameter(torch.tensor(params0))
    tx = getattr(torch.optim, optimizer)([param], lr=LR, **kwargs)
    trajectory = []
    for grad in grads:
        param.grad = torch.tensor(grad)
        tx.step()
        trajectory.append(param.detach().numpy().copy())
    return np.stack(trajectory)


def main():
    # NAdam keeps its product of decays in the default dtype.
    torch.set_default_dtype(torch.float64)
    grads = make_grads()
    params0 = np.linspace(-1.5, 1.5, len(SCALES))
    arrays, cases = {}, {}
    for case, (optimizer, kwargs, torch_name, torch_kwargs) in CASES.items():
        arrays[f"params/{case}"] = run(torch_name, torch_kwargs, grads, params0)
        cases[case] = {
            "optimizer": optimizer,
            "kwargs": {"learning_rate": LR, **kwargs},
            "in_optax": optimizer not in NOT_IN_OPTAX,
            "torch": {"optimizer": torch_name, "kwargs": {"lr": LR, **torch_kwargs}},
        }
    np.savez_compressed(
        Path(__file__).with_name("torch.npz"),
        grads=grads,
        params0=params0,
        cases=json.dumps(cases),
        torch_version=torch.__version__.split("+")[0],
        **arrays,
    )


if __name__ == "__main__":
    main()
