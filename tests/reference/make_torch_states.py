"""Write torch_states.npz: runs of PyTorch's optimizers, with their state halfway.

Made with PyTorch 2.13.0 on CPU. To make it again:

    python3.11 -m venv /tmp/vtorch
    /tmp/vtorch/bin/pip install torch==2.13.0 numpy
    /tmp/vtorch/bin/python tests/reference/make_torch_states.py

Every case takes 20 steps from the same parameters, on the same gradients. The file
holds, for a parameter such as <name> = "0.weight" and its <index> in the state_dict:

    params0/<name>                 (...)      before the first step, float64
    grads/<name>                   (20, ...)  the gradient of every step, float64
    <case>/params10/<name>         (...)      after step 10
    <case>/params20/<name>         (...)      after step 20
    <case>/state/<index>/<key>     (...)      state_dict()["state"] after step 10
    <case>/param_groups            JSON       state_dict()["param_groups"]
    <case>/names                   JSON       the names in the order of the indices
    cases                          JSON       {<case>: {"optimizer", "kwargs", "dtype"}}
    torch_version                  "2.13.0"

The arrays of a case have the dtypes that PyTorch gave them. In "adamw_partial", a
parameter has no gradient in some steps, and so no state or fewer steps: see LATE.
"""

import json
from pathlib import Path

import numpy as np
import torch

LR = 0.01
STEPS, HALFWAY = 20, 10
# No gradient reaches this row of the embedding in the first steps.
ROW, FIRST_SEEN = 4, 14
# name: the first step, from 0, in which it has a gradient, in the case "adamw_partial"
LATE = {"1.weight": 4, "2.bias": STEPS}

ADAMW = {"weight_decay": 0.01}
# At b2 = 0.999, the raw moment would hardly ever fall below its maximum in 20 steps.
AMSGRAD = {"amsgrad": True, "betas": (0.8, 0.9)}
# name: PyTorch's class and arguments, beside the learning rate
CASES = {
    "adam": ("Adam", {"weight_decay": 0.0}),
    "adam_l2": ("Adam", {"weight_decay": 0.1}),
    "adamw": ("AdamW", ADAMW),
    "adam_amsgrad": ("Adam", AMSGRAD),
    "adamw_amsgrad": ("AdamW", {**ADAMW, **AMSGRAD}),
    "nadam": ("NAdam", {}),
    # Here b1 follows no schedule: see make_torch.py.
    "nadam_constant": ("NAdam", {"momentum_decay": 1e6}),
    "radam": ("RAdam", {}),
    "adamax": ("Adamax", {}),
    "adagrad": ("Adagrad", {"initial_accumulator_value": 0.1}),
    "rmsprop": ("RMSprop", {}),
    "rmsprop_centered": ("RMSprop", {"centered": True, "momentum": 0.9}),
    "sgd_momentum": ("SGD", {"momentum": 0.9}),
    "sgd_nesterov": ("SGD", {"momentum": 0.9, "nesterov": True}),
    "sgd_dampening": ("SGD", {"momentum": 0.9, "dampening": 0.5}),
    "adamw_groups": ("AdamW", ADAMW),
    "adamw_groups_named": ("AdamW", ADAMW),
    "adamw_partial": ("AdamW", ADAMW),
    "adamw_foreach": ("AdamW", {**ADAMW, "foreach": True}),
    "adamw_fused": ("AdamW", {**ADAMW, "fused": True}),
    "adamw_amsgrad_foreach": ("AdamW", {**ADAMW, **AMSGRAD, "foreach": True}),
    "adamw_amsgrad_fused": ("AdamW", {**ADAMW, **AMSGRAD, "fused": True}),
}
IN_FLOAT32 = ("adamw", "adam_amsgrad", "adamw_amsgrad")
# The first group is not in the order of named_parameters().
GROUPS = (
    {"params": ("1.weight", "0.weight")},
    {"params": ("0.bias", "2.weight", "2.bias"), "weight_decay": 0.0},
)


def make_model():
    """Return modules that are never called: they only name and shape parameters."""
    return torch.nn.Sequential(
        torch.nn.Linear(4, 3), torch.nn.Embedding(5, 4), torch.nn.LayerNorm(3)
    )


def make_inputs():
    """Return the first parameters and all gradients by name, of many scales."""
    rng = np.random.default_rng(0)
    params0, grads = {}, {}
    for name, param in make_model().named_parameters():
        shape = tuple(param.shape)
        params0[name] = rng.normal(size=shape)
        scales = 10 ** rng.uniform(-4, 1, size=shape)
        grads[name] = scales * rng.normal(size=(STEPS, *shape))
    grads["1.weight"][:FIRST_SEEN, ROW] = 0.0
    return params0, grads


def make_groups(case, params):
    """Return what the optimizer of a case is given, and the names in that order."""
    if "groups" not in case:
        return list(params.values()), list(params)
    groups = [dict(group) for group in GROUPS]
    for group in groups:
        pairs = [(name, params[name]) for name in group["params"]]
        named = case.endswith("_named")
        group["params"] = pairs if named else [param for _, param in pairs]
    return groups, [name for group in GROUPS for name in group["params"]]


def run(case, optimizer, kwargs, dtype, inputs):
    """Return the arrays of one case, by their keys without its name."""
    # The default dtype is that of the counts and of NAdam's product of decays.
    torch.set_default_dtype(dtype)
    params0, grads = inputs
    params = dict(make_model().named_parameters())
    for name, param in params.items():
        param.data = torch.tensor(params0[name], dtype=dtype)
    groups, names = make_groups(case, params)
    tx = getattr(torch.optim, optimizer)(groups, lr=LR, **kwargs)
    first = LATE if case == "adamw_partial" else {}
    arrays = {"names": json.dumps(names)}
    for step in range(STEPS):
        for name, param in params.items():
            seen = step >= first.get(name, 0)
            grad = torch.tensor(grads[name][step], dtype=dtype)
            param.grad = grad if seen else None
        tx.step()
        if step + 1 == HALFWAY:
            arrays |= flatten(tx.state_dict())
        if step + 1 in (HALFWAY, STEPS):
            for name, param in params.items():
                arrays[f"params{step + 1}/{name}"] = param.detach().numpy().copy()
    return arrays


def flatten(state_dict):
    """Return the arrays of a state_dict, and its groups as JSON."""
    arrays = {"param_groups": json.dumps(state_dict["param_groups"])}
    for index, state in state_dict["state"].items():
        for key, value in state.items():
            arrays[f"state/{index}/{key}"] = value.numpy().copy()
    return arrays


def main():
    inputs = params0, grads = make_inputs()
    arrays = {f"params0/{name}": param for name, param in params0.items()}
    arrays |= {f"grads/{name}": grad for name, grad in grads.items()}
    cases = {}
    runs = [(name, name, torch.float64) for name in CASES]
    runs += [(f"{name}_float32", name, torch.float32) for name in IN_FLOAT32]
    for case, name, dtype in runs:
        optimizer, kwargs = CASES[name]
        made = run(case, optimizer, kwargs, dtype, inputs)
        arrays |= {f"{case}/{key}": value for key, value in made.items()}
        cases[case] = {
            "optimizer": optimizer,
            "kwargs": {"lr": LR, **kwargs},
            "dtype": str(dtype).removeprefix("torch."),
        }
    np.savez_compressed(
        Path(__file__).with_name("torch_states.npz"),
        cases=json.dumps(cases),
        torch_version=torch.__version__.split("+")[0],
        **arrays,
    )


if __name__ == "__main__":
    main()
