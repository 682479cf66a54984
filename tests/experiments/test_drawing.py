"""Pictures can be read: numbers on log scales, settings, lines that coincide."""

import math

import pytest
from PIL import ImageColor
from specs import Shown

from adam_jax.experiments.pictures.drawing import (
    Line,
    choose_looks,
    draw_lines,
    to_spec,
)
from adam_jax.experiments.pictures.scales import (
    choose_ticks,
    epochs_axis,
    name_values,
    scale_log,
    scale_shares,
    settings_axis,
)


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
    (0.49, 1.2): [0.5, 0.7, 1],
    (0.592812, 0.592826): [0.592815, 0.59282, 0.592825],
    (1.15e-7, 1.65e-7): [1.2e-7, 1.4e-7, 1.6e-7],
    (0.06, 9.5): [0.1, 0.2, 0.5, 1, 2, 5],
    (0.001, 1.9): [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1],
    (0.001, 5e3): [10.0**n for n in range(-3, 4)],
    (1e-9, 5e4): [10.0**n for n in range(-9, 5, 3)],
}


@pytest.mark.parametrize(("ends", "expected"), RANGES.items(), ids=str)
def test_a_log_scale_has_numbers_whatever_its_range(ends, expected):
    assert choose_ticks(*ends) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("high", [0.9, 30.0, 1e4])
def test_a_scale_that_has_a_0_does_too(high):
    chosen = scale_log([0.0, 0.1, high])
    scale, ticks = chosen["scale"].to_dict(), chosen["axis"].to_dict()["values"]
    assert (scale["type"], scale["constant"]) == ("symlog", 0.01)
    assert scale["domain"][0] < 0 < high < scale["domain"][1]
    assert ticks[0] == 0
    assert len(ticks) > 4
    assert high / 10 < max(ticks) <= scale["domain"][1]


def test_what_has_no_place_leaves_a_gap():
    band = [0.0, 0.5, 0.5], [1.0, math.inf, 1.0]
    line = Line("mine", [1, 2, 3], [0.5, math.nan, 0.0], bands=[band])
    scale = scale_log([0.5, 1.0])
    shown = Shown(to_spec(draw_lines([line], epochs_axis(3), "loss", scale)))
    assert shown.lines() == {"mine": [0.5, None, None]}
    assert shown.band() == [(3, 0.5, 1.0)]


def test_a_flat_line_looks_flat():
    assert scale_log([2.3, 2.31])["scale"].domain == pytest.approx([2.19, 2.42], 1e-2)
    shares = scale_shares([0.9, 0.9])["scale"].to_dict()["domain"]
    assert shares == pytest.approx([0.88, 0.92])


def test_there_is_room_for_a_scale_of_nothing():
    for values in ([], [math.nan], [0.0], [math.inf, -1.0]):
        assert "domain" not in scale_log(values)["scale"].to_dict()


def test_settings_have_places():
    axis, place = settings_axis("b2", [0.99, 0.9, 0.999])
    assert axis.to_dict()["scale"]["domain"] == ["0.9", "0.99", "0.999"]
    assert place(0.99) == "0.99"
    axis, place = settings_axis("lr", [1e-3, 0.1])
    assert (axis.to_dict()["scale"]["type"], place(0.1)) == ("log", 0.1)
    axis, place = settings_axis("b1", [n / 20 for n in range(20)])
    assert (axis.to_dict()["type"], place(0.1)) == ("quantitative", 0.1)


def test_lines_that_coincide_can_be_told_apart():
    looks = choose_looks(10)
    assert len({(look.colour, look.dash) for look in looks}) == 10
    widths = [look.width for look in looks]
    assert widths == sorted(set(widths), reverse=True)  # the first is the widest
    colours = [ImageColor.getrgb(look.colour) for look in looks[:6]]
    apart = [
        math.dist(one, other) for one in colours for other in colours if one != other
    ]
    assert min(apart) > 0.25 * 255
    # Of long lines a few points are marked, of each line others.
    lines = [Line(str(n), range(80), [1.0] * 80, x) for n, x in enumerate(looks)]
    scale = scale_log([1.0])
    shown = Shown(to_spec(draw_lines(lines, epochs_axis(80), "loss", scale)))
    marked = {row["n"]: row["line"] for row in shown.rows if row["marked"]}
    assert 60 < len(marked) <= 80
    assert set(marked.values()) == {str(n) for n in range(10)}
