"""What pictures share: how lines look, log scales, and how settings are written."""

import itertools
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.axis import Axis
from matplotlib.ticker import (
    LogLocator,
    MaxNLocator,
    NullFormatter,
    SymmetricalLogLocator,
)

# Okabe and Ito's colours: the colour-blind tell them apart.
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "black"]
# What a log scale labels in each decade: the first of these that leaves room.
SUBS = ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,))
FEWEST, MOST = 4, 7  # labels


def choose_looks(count: int) -> list[dict[str, Any]]:
    """Give the look of each line: where some coincide, the first ones still show."""
    widths = np.linspace(3.4, 1.4, count) if count > 1 else [2.0]
    looks = itertools.cycle(itertools.product(("-", "--", ":"), COLORS))
    return [
        {"color": color, "ls": dashes, "lw": width}
        for width, (dashes, color) in zip(widths, looks, strict=False)
    ]


def label_log(axis: Axis) -> None:
    """Label a log scale with at least three numbers, however many decades it has.

    Args:
      axis: On a log or symlog scale. Its limits must be set already.
    """
    low, high = axis.get_view_interval()
    transform: Any = axis.get_transform()
    is_symmetric = axis.get_scale() == "symlog"
    low = transform.linthresh if is_symmetric else low

    def has_room(subs: tuple[float, ...]) -> bool:
        places = LogLocator(subs=subs).tick_values(low, high)
        return FEWEST <= sum(low <= place <= high for place in places) <= MOST

    fine, *_, decades = SUBS
    is_narrow = high < 10 * low
    subs = next(filter(has_room, SUBS), fine if is_narrow else decades)
    locator: Any = LogLocator(subs=subs)
    if is_symmetric:
        locator = SymmetricalLogLocator(transform, subs=subs)
    elif is_narrow and not has_room(subs):
        locator = MaxNLocator(5, steps=[1, 2, 5, 10])
    axis.set_major_locator(locator)
    axis.set_major_formatter("{x:.10g}")
    axis.set_minor_formatter(NullFormatter())


def name_values(values: Iterable[float], digits: int = 4) -> dict[float, str]:
    """Write settings in as few digits as tell them apart, from each other and from 1.

    Args:
      values: The settings.
      digits: The fewest digits; of what is near 1, as decays are, those of its distance
        from 1.

    Example: a decay is not rounded to 1.

      >>> print(*name_values([0.9, 0.9999, 3.16227766017e-05]).values())
      0.9 0.9999 3.162e-05
    """
    kept, names = list(values), {}
    for count in range(digits, 18):  # 17 digits tell all floats apart
        names = {value: _write(value, count) for value in kept}
        if len(set(names.values())) == len(names):
            break
    return names


def _write(value: float, digits: int) -> str:
    apart = abs(1 - value)
    nines = math.floor(-math.log10(apart)) if 0 < apart < 0.5 else 0
    return f"{value:.{digits + nines}g}"
