"""The picture of a comparison: curves over epochs, with a band over seeds."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from adam_jax.experiments.drawing import choose_looks, label_log
from adam_jax.experiments.metrics import ACCURACY
from adam_jax.experiments.study.config import CompareConfig
from adam_jax.experiments.study.members import Member
from adam_jax.experiments.study.outcomes import Outcome, group_members

MARKERS = "os^DvP*X"
MARKED = 8  # markers along a curve
RESOLUTION = 1e-8  # of a loss in float32: what is below is rounding
LOSSES = {"train_loss": "Training loss", "test_loss": "Test loss"}


def draw_curves(
    config: CompareConfig,
    members: Sequence[Member],
    baselines: Mapping[str, float] = MappingProxyType({}),
) -> Figure:
    """Draw the losses and the test accuracy: means, in bands from min to max.

    Args:
      config: The study.
      members: What was trained.
      baselines: Of a problem; they are drawn if a curve comes near.
    """
    outcomes = group_members(members)
    names = [*LOSSES, *([ACCURACY] if ACCURACY in members[0].metrics else [])]
    figure = Figure(figsize=(5.2 * len(names), 5.2), layout="constrained")
    panels = dict(zip(names, figure.subplots(1, len(names)), strict=True))
    seeds = len(config.seed_list)
    over = f"mean and range of {seeds} seeds" if seeds > 1 else "one seed"
    figure.suptitle(f"{config.heading}, {over}", weight="bold")
    looks = choose_looks(len(outcomes))
    for number, (outcome, look) in enumerate(zip(outcomes, looks, strict=True)):
        look["marker"] = MARKERS[number % len(MARKERS)]
        for name, panel in panels.items():
            _draw_band(panel, outcome, name, look, number / len(outcomes))
    for name, title in LOSSES.items():
        panels[name].set(title=title, ylabel="loss")
        _scale_loss(panels[name], outcomes, name)
    if ACCURACY in panels:
        panels[ACCURACY].set(title="Test accuracy", ylabel="test labels found")
        panels[ACCURACY].yaxis.set_major_formatter(PercentFormatter(1))
        if panels[ACCURACY].get_ylim()[0] <= baselines.get(ACCURACY, 0.0):
            label = "share of the commonest label"
            style = {"color": "k", "ls": ":", "lw": 2.5, "zorder": 3}
            panels["train_loss"].plot([], [], **style, label=label)
            panels[ACCURACY].axhline(baselines[ACCURACY], **style)
    for panel in panels.values():
        panel.grid(alpha=0.3)
        panel.set(xlabel="epoch", xlim=(0.5, config.epochs + 0.5))
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    lines, labels = panels["train_loss"].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=min(6, len(lines)))
    return figure


def _draw_band(
    panel: Axes, outcome: Outcome, name: str, look: dict[str, Any], shift: float
) -> None:
    curves = np.array([member.curve(name) for member in outcome.members])
    epochs = np.arange(1, curves.shape[1] + 1)
    every = max(1, round(len(epochs) / MARKED))
    diverged = f", {outcome.diverged} diverged" if outcome.diverged else ""
    panel.plot(
        epochs,
        curves.mean(axis=0),
        **look,
        markersize=5,
        # Curves that coincide are told apart by where they are marked.
        markevery=(int(shift * every), every),
        label=outcome.optimizer + diverged,
    )
    low, high = curves.min(axis=0), curves.max(axis=0)
    panel.fill_between(epochs, low, high, color=look["color"], alpha=0.2, lw=0)


def _scale_loss(panel: Axes, outcomes: Sequence[Outcome], name: str) -> None:
    """Use a log scale, on which a run that explodes leaves room for the others."""
    means = [np.mean([m.curve(name) for m in o.members], axis=0) for o in outcomes]
    shown = [x for mean in means for x in mean.tolist() if 0 < x < math.inf]
    if not shown:
        return
    panel.set_yscale("log")
    starts = [mean[0] for mean in means if 0 < mean[0] < math.inf]
    high = min(max(shown), 10 * float(np.median(starts or shown)))
    low = max(min(shown), high * RESOLUTION)
    panel.set_ylim(low / 1.1, max(high, 1.1 * low) * 1.1)
    label_log(panel.yaxis)
