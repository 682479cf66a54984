"""What is reported of an epoch: ranked, written, read back."""

import math

import pytest

from adam_jax.experiments.metrics import (
    Epoch,
    from_json,
    rank_moved,
    to_json,
    to_scalars,
)

EPOCH = Epoch(
    epoch=1,
    step=2,
    skipped=0,
    learning_rate=1e-3,
    train_loss=math.inf,
    test_loss=0.5,
    metrics={"accuracy": 0.9},
    figures={"update_norm": 0.1, "update_norm/w": math.nan},
    moved={"w": 0.2},
)


@pytest.mark.parametrize(
    ("groups", "most", "least"),
    [
        ("abcdefgh", "hgf", "abc"),
        ("abcd", "dc", "ab"),
        ("abc", "c", "a"),
        ("a", "a", ""),
    ],
)
def test_groups_are_ranked_and_none_is_named_twice(groups, most, least):
    moved = {group: float(n) for n, group in enumerate(groups)}
    assert rank_moved(moved) == ([*most], [*least])


def test_what_is_not_finite_moved_most():
    moved = {"a": math.nan, "b": 1.0, "c": math.inf, "d": 0.0}
    assert rank_moved(moved) == (["a", "c"], ["d", "b"])


def test_a_line_of_json_holds_an_epoch_but_for_what_is_not_finite():
    line = to_json(EPOCH)
    assert '"train_loss": null' in line and '"update_norm/w": null' in line
    read = from_json(line)
    assert math.isnan(read.train_loss) and math.isnan(read.figures["update_norm/w"])
    assert to_json(read) == line


def test_scalars_have_one_name_each():
    scalars = to_scalars(EPOCH)
    assert scalars["loss/train"] == math.inf
    assert scalars["update_norm"] == 0.1
    assert scalars["moved/w"] == 0.2
    assert len(scalars) == 5 + 2 + 1
