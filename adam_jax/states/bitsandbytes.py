"""What optimizers of bitsandbytes keep in PyTorch's states, under PyTorch's names."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from adam_jax.states.foreign import as_array

# Newer versions hide moments from FSDP, in a dict of their own.
_HIDDEN = "__bnb_optimizer_quant_state__"
# So many elements share a scale: the second number is that of older versions.
_BLOCKS = (256, 2048)
_ABOUT = {
    "max1": "a scale of a whole tensor (block_wise=False)",
    "unorm_vec": "LAMB's and LARS' norm of the update",
    "gnorm_vec": "percentile_clipping's history",
}


def as_torch(
    kept: Mapping[str, Any], group: Mapping[str, Any], path: str
) -> dict[str, Any]:
    """Return the state of a parameter under PyTorch's names, decoded.

    Args:
      kept: its state, of bitsandbytes or of PyTorch, which is returned as it is.
      group: what `param_groups` says of it. An optimizer that keeps one moment is known
        by its hyperparameters: RMSprop and Adagrad have an eps, Lion has a second
        decay rate, SGD has neither.
      path: of the parameter, for messages.

    Raises:
      ValueError: for a state that has no counterpart, or that is not complete.
    """
    kept = {**kept, **kept.get(_HIDDEN, {})}
    kept.pop(_HIDDEN, None)
    if "state1" not in kept:
        return kept
    for key in kept:
        if key != "step" and key[:-1] not in ("state", "qmap", "absmax"):
            raise ValueError(
                f"bitsandbytes' {key!r}, of {path}, has no counterpart here"
                + (f": it is {_ABOUT[key]}." if key in _ABOUT else ".")
            )
    numbers = [x for x in ("1", "2") if f"state{x}" in kept]
    shapes = [np.shape(kept[f"state{x}"]) for x in numbers]
    if shapes[0] == (2, *shapes[-1]):
        raise ValueError(f"AdEMAMix, of {path}, has no counterpart here.")
    moments = {x: _decode(kept, x, path) for x in numbers}
    if "2" in moments:
        names = {"1": "exp_avg", "2": "exp_avg_sq"}
    elif "eps" not in group or "betas" not in group:
        raise ValueError(
            f"the group of {path} lacks the eps and betas that say what state1 is."
        )
    elif group["eps"] > 0:
        names = {"1": "sum"}
    else:
        names = {"1": "exp_avg" if group["betas"][1] > 0 else "momentum_buffer"}
    return {"step": kept.get("step")} | {names[x]: y for x, y in moments.items()}


def _decode(kept: Mapping[str, Any], number: str, path: str) -> np.ndarray:
    """Return a moment in float32, of which there may be codes."""
    codes = as_array(kept[f"state{number}"])
    if codes.dtype != np.uint8:
        return codes
    missing = [x for x in (f"qmap{number}", f"absmax{number}") if x not in kept]
    if missing:
        raise ValueError(f"the moments of {path} are codes, but have no {missing[0]}.")
    values, scales = (as_array(kept[f"{x}{number}"]) for x in ("qmap", "absmax"))
    sizes = [x for x in _BLOCKS if -(-codes.size // x) == scales.size]
    if not sizes:
        raise ValueError(
            f"the moments of {path} are {codes.size} codes with {scales.size} scales, "
            f"which are not blocks of {' or '.join(map(str, _BLOCKS))}."
        )
    each = np.repeat(scales, sizes[0])[: codes.size]
    return (values[codes.ravel()] * each).reshape(codes.shape)
