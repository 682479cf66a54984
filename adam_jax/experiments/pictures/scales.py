"""Scales and axes of charts, what they label, and how settings are written."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import altair as alt

# What a log scale labels in each decade: the first of these that leaves room.
SUBS = ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,))
FEWEST, MOST = 3, 7  # labels
LISTED = 12  # values that an axis lists


def epochs_axis(count: int) -> alt.X:
    """Give the horizontal axis of so many epochs."""
    scale = alt.Scale(domain=[0.5, count + 0.5], nice=False, zero=False)
    return alt.X("x:Q", title="epoch", scale=scale, axis=alt.Axis(tickMinStep=1))


def settings_axis(
    title: str, values: Iterable[float], channel: Any = alt.X
) -> tuple[Any, Callable[[float], Any]]:
    """Give the axis, alt.X or alt.Y, of a hyperparameter, and what places values on it.

    Few, such as 0.9 and 0.999 or 0, are evenly spaced: so they are told apart.
    """
    field = channel.__name__.lower()
    kept = sorted(set(values))
    spans_decades = kept[0] > 0 and kept[-1] >= 10 * kept[0]
    if spans_decades or len(kept) > LISTED:
        scale = scale_log(kept) if spans_decades else scale_linear()
        return channel(f"{field}:Q", title=title, **scale), float
    names = name_values(kept)
    listed = [*names.values()]
    scale = alt.Scale(domain=listed if channel is alt.X else listed[::-1])
    axis = channel(f"{field}:O", title=title, scale=scale)
    return axis.axis(labelAngle=0, grid=True), names.__getitem__


def scale_log(
    values: Iterable[float], least: float = 0.0, most: float = math.inf
) -> dict[str, Any]:
    """Choose a log scale from `least` to `most`, with a 0 where a value is 0."""
    kept = [float(value) for value in values if 0 <= value < math.inf]
    shown = [value for value in kept if value > 0]
    if not shown:
        return scale_linear()
    high = min(max(shown), most)
    low = min(max(min(shown), least), high)
    # The last digit of a loss is no fall.
    room = 1.05 if high < 1.05 * low else (high / low) ** 0.04
    low, high = low / room, high * room
    if len(shown) == len(kept):
        return _label(choose_ticks(low, high), type="log", domain=[low, high])
    least = 10.0 ** math.floor(math.log10(low))
    ticks, domain = [0.0, *choose_ticks(least, high)], [-0.1 * least, high]
    return _label(ticks, type="symlog", constant=least, domain=domain)


def _label(ticks: Sequence[float], **scale: Any) -> dict[str, Any]:
    axis = alt.Axis(values=list(ticks), format=".10~g")
    return {"scale": alt.Scale(nice=False, **scale), "axis": axis}


def scale_linear() -> dict[str, Any]:
    """Give a linear scale, which need not begin at 0."""
    return {"scale": alt.Scale(zero=False), "axis": alt.Axis()}


def scale_shares(values: Iterable[float]) -> dict[str, Any]:
    """Choose a scale in percent, on which what hardly changes looks flat."""
    shown = [value for value in values if math.isfinite(value)]
    low, high = min(shown, default=0.0), max(shown, default=1.0)
    width = high - low
    # A test image more or less is no climb.
    room = 0.02 - width / 2 if width < 0.02 else 0.03 * width
    scale = alt.Scale(domain=[low - room, high + room], zero=False)
    return {"scale": scale, "axis": alt.Axis(format=".4~%")}


def choose_ticks(low: float, high: float) -> list[float]:
    """Choose what a log scale labels: at least three numbers, however narrow it is."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)

    def place(subs: Iterable[float], every: int = 1) -> list[float]:
        ticks = [float(f"{sub}e{n}") for n in decades[::every] for sub in subs]
        return [tick for tick in ticks if low <= tick <= high]

    for subs in SUBS:
        if FEWEST <= len(place(subs)) <= MOST:
            return place(subs)
    if high >= 10 * low:
        return place((1,), math.ceil(len(decades) / MOST))
    powers = itertools.count(decades.stop, -1)
    for step in (float(f"{n}e{power}") for power in powers for n in (5, 2, 1)):
        counts = range(math.ceil(low / step), math.floor(high / step) + 1)
        if len(counts) >= FEWEST:
            return [float(f"{count * step:.12g}") for count in counts]
    raise AssertionError("unreachable: there is always a smaller step")


def name_values(values: Iterable[Any], digits: int = 4) -> dict[Any, str]:
    """Write settings in as few digits as tell them apart, from each other and from 1.

    They have at least `digits`; of what is near 1, as decays are, these count its
    distance from 1. What is no float is written as it is.

      >>> print(*name_values([0.9, 0.9999, 3.16227766017e-05]).values())
      0.9 0.9999 3.162e-05
    """

    def write(value: Any, count: int) -> str:
        if not isinstance(value, float):
            return str(value)
        apart = abs(1 - value)
        nines = math.floor(-math.log10(apart)) if 0 < apart < 0.5 else 0
        return f"{value:.{count + nines}g}"

    kept, names = dict.fromkeys(values), {}
    for count in range(digits, 18):  # 17 digits tell all floats apart
        names = {value: write(value, count) for value in kept}
        if len(set(names.values())) == len(names):
            break
    return names
