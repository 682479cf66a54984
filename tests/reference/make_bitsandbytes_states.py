"""Write bitsandbytes_states.npz: runs of bitsandbytes, with their state halfway.

Made with bitsandbytes 0.50.2 and PyTorch 2.13.0 on CPU. To make it again:

    python3.11 -m venv /tmp/vbnb
    /tmp/vbnb/bin/pip install torch==2.13.0 bitsandbytes==0.50.2
    /tmp/vbnb/bin/python tests/reference/make_bitsandbytes_states.py

Every case takes 20 steps from the same parameters, on the same gradients, in float32.
The file holds, for a parameter <name> and its <index> in the state_dict:

    params0/<name>                  (...)      before the first step
    grads/<name>                    (20, ...)  the gradient of every step
    <case>/params<step>/<name>      (...)      after steps 10, 11 and 20
    <case>/state/<index>/<key>      (...)      state_dict()["state"] after step 10; what
                                               is hidden in a dict has the key
                                               "__bnb_optimizer_quant_state__.<key>"
    <case>/decoded/<index>/<key>    (...)      the moments, decoded by bitsandbytes
    <case>/param_groups             JSON       state_dict()["param_groups"]
    bitsandbytes_version            "0.50.2"

The weight is large enough for 8 bits, in two blocks; the bias stays in 32 bits.
"""

import json
from pathlib import Path

import bitsandbytes as bnb
import numpy as np
import torch

LR = 0.01
STEPS, HALFWAY = 20, 10
SHAPES = {"weight": (20, 15), "bias": (20,)}
ADAMW = {"weight_decay": 0.1}
SGD = {"momentum": 0.9}
# name: the class and its arguments, beside the learning rate
CASES = {
    "adam": ("Adam", {}),
    "adam_decayed": ("Adam", ADAMW),
    "adamw": ("AdamW", ADAMW),
    "lion": ("Lion", ADAMW),
    "rmsprop": ("RMSprop", ADAMW),
    "adagrad": ("Adagrad", {}),
    "sgd": ("SGD", {**SGD, **ADAMW}),
    "adam_8bit": ("Adam8bit", {}),
    "adamw_8bit": ("AdamW8bit", ADAMW),
    "paged_adamw_8bit": ("PagedAdamW8bit", ADAMW),
    "lion_8bit": ("Lion8bit", ADAMW),
    "rmsprop_8bit": ("RMSprop8bit", {}),
    "adagrad_8bit": ("Adagrad8bit", {}),
    "sgd_8bit": ("SGD8bit", {**SGD, "dampening": 0.0, "nesterov": True}),
    "ademamix": ("AdEMAMix", {}),
    "ademamix_8bit": ("AdEMAMix8bit", {}),
    "lamb_8bit": ("LAMB8bit", {}),
}


def make_inputs():
    """Return the first parameters and all gradients by name, of many scales."""
    rng = np.random.default_rng(0)
    params0, grads = {}, {}
    for name, shape in SHAPES.items():
        params0[name] = rng.normal(size=shape).astype(np.float32)
        scales = 10 ** rng.uniform(-3, 1, size=shape)
        grads[name] = (scales * rng.normal(size=(STEPS, *shape))).astype(np.float32)
    return params0, grads


def decode(state):
    """Return the moments of a parameter, by the keys of their codes."""
    found = {}
    for number in ("1", "2"):
        codes = state.get(f"state{number}")
        if codes is not None and codes.dtype == torch.uint8:
            found[f"state{number}"] = torch.ops.bitsandbytes.dequantize_blockwise(
                codes,
                state[f"absmax{number}"],
                state[f"qmap{number}"],
                256,
                torch.float32,
            )
    return found


def to_array(value):
    """Return a copy of a tensor as an array, or a number."""
    return value.numpy().copy() if hasattr(value, "numpy") else np.array(value)


def flatten(state):
    """Return the items of a state and of the dicts in it."""
    for key, value in state.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{inner}", x) for inner, x in value.items())
        else:
            yield key, value


def run(kind, kwargs, inputs):
    """Return the arrays of one case, by their keys without its name."""
    params0, grads = inputs
    params = [torch.nn.Parameter(torch.tensor(x)) for x in params0.values()]
    tx = getattr(bnb.optim, kind)(params, lr=LR, min_8bit_size=256, **kwargs)
    arrays = {}
    for step in range(1, STEPS + 1):
        for name, param in zip(SHAPES, params, strict=True):
            param.grad = torch.tensor(grads[name][step - 1])
        tx.step()
        if step == HALFWAY:
            state_dict = tx.state_dict()
            arrays["param_groups"] = json.dumps(state_dict["param_groups"])
            for index, state in state_dict["state"].items():
                for key, value in flatten(state):
                    arrays[f"state/{index}/{key}"] = to_array(value)
                if "AdEMAMix" not in kind:
                    for key, value in decode(tx.state[params[index]]).items():
                        arrays[f"decoded/{index}/{key}"] = to_array(value)
        if step in (HALFWAY, HALFWAY + 1, STEPS):
            for name, param in zip(SHAPES, params, strict=True):
                arrays[f"params{step}/{name}"] = param.detach().numpy().copy()
    return arrays


def main():
    inputs = params0, grads = make_inputs()
    arrays = {f"params0/{name}": x for name, x in params0.items()}
    arrays |= {f"grads/{name}": x for name, x in grads.items()}
    for case, (kind, kwargs) in CASES.items():
        made = run(kind, kwargs, inputs)
        arrays |= {f"{case}/{key}": value for key, value in made.items()}
    np.savez_compressed(
        Path(__file__).with_name("bitsandbytes_states.npz"),
        bitsandbytes_version=bnb.__version__,
        **arrays,
    )


if __name__ == "__main__":
    main()
