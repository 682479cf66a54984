"""Pictures can be read: numbers on log scales, settings, lines that coincide."""

import math

import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from adam_jax.experiments.drawing import choose_looks, label_log, name_values


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([0.9, 0.99, 0.999, 0.9999], ["0.9", "0.99", "0.999", "0.9999"]),
        ([0.99999, 1.0], ["0.99999", "1"]),
        ([0.9999], ["0.9999"]),  # alone, too
        ([0.99968377223], ["0.9996838"]),
        ([1.00001], ["1.00001"]),
        ([1e-8, 3e-4, 0.0], ["1e-08", "0.0003", "0"]),
        ([3.16227766017e-05, 0.1 + 0.2], ["3.162e-05", "0.3"]),
        ([0.10001, 0.10002], ["0.10001", "0.10002"]),
        ([0.3, 0.1 + 0.2], ["0.29999999999999999", "0.30000000000000004"]),
        ([math.inf, -3.0], ["inf", "-3"]),
        ([], []),
    ],
)
def test_settings_are_told_apart(values, names):
    named = name_values(values)
    assert list(named) == values
    assert list(named.values()) == names


def test_fewer_digits_if_they_do():
    assert list(name_values([3.16227766017e-05, 1e-4], 3).values()) == [
        "3.16e-05",
        "0.0001",
    ]


RANGES = {
    (0.58, 2.1): [0.7, 1, 1.5, 2],
    (0.49, 1.2): [0.6, 0.8, 1],
    (0.592812, 0.592826): [0.592815, 0.59282, 0.592825],
    (1.15e-7, 1.65e-7): [1.2e-7, 1.3e-7, 1.4e-7, 1.5e-7, 1.6e-7],
    (0.06, 9.5): [0.1, 0.2, 0.5, 1, 2, 5],
    (0.001, 1.9): [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1],
    (0.001, 5e4): [10.0**n for n in range(-3, 5)],
}


@pytest.mark.parametrize(("ends", "expected"), RANGES.items(), ids=str)
def test_a_log_scale_has_numbers_whatever_its_range(ends, expected):
    panel = Figure().subplots()
    panel.set(yscale="log", ylim=ends)
    label_log(panel.yaxis)
    ticks = zip(panel.get_yticks(), panel.get_yticklabels(), strict=True)
    labels = [text.get_text() for at, text in ticks if ends[0] <= at <= ends[1]]
    # Matplotlib writes a minus as it should be.
    found = [float(label.replace("\N{MINUS SIGN}", "-")) for label in labels]
    assert found == pytest.approx(expected, rel=1e-9)
    minor = panel.get_yticklabels(minor=True)
    assert not any(text.get_text() for text in minor)


@pytest.mark.parametrize("high", [0.9, 30.0, 1e4])
def test_a_scale_that_has_a_0_does_too(high):
    panel = Figure().subplots()
    panel.set_yscale("symlog", linthresh=0.1)
    panel.set_ylim(-0.01, high)
    label_log(panel.yaxis)
    shown = [x for x in panel.get_yticks() if 0 <= x <= high]
    assert 0 in shown
    assert len(shown) > 4
    assert max(shown) > high / 10


def test_lines_that_coincide_can_be_told_apart():
    looks = choose_looks(10)
    assert len({(look["color"], look["ls"]) for look in looks}) == 10
    widths = [look["lw"] for look in looks]
    assert widths == sorted(set(widths), reverse=True)  # the first is the widest
    colors = [to_rgb(look["color"]) for look in looks[:7]]
    apart = [
        math.dist(one, other) for one in colors for other in colors if one != other
    ]
    assert min(apart) > 0.25
