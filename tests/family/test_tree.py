"""The family tree: every optimizer has a place, a chain that can be read, and a use."""

import inspect
import re

import pytest

import adam_jax
from adam_jax import OPTIMIZERS, adam, assert_follows
from adam_jax.family.table import PARENTS
from adam_jax.family.tree import chain_lines, children, compare_lines, lineage

MOST_STAGES = 8
every = pytest.mark.parametrize("name", OPTIMIZERS)


@every
def test_every_optimizer_descends_from_sgd(name):
    assert lineage(name)[0] == "sgd"
    assert name == "sgd" or name in children(PARENTS[name])


def test_the_tree_has_no_others():
    assert PARENTS.keys() == OPTIMIZERS.keys() - {"sgd"}


@every
def test_a_chain_is_short_and_differs_from_its_parent(name):
    lines = chain_lines(name)
    assert 1 <= sum(line[0] != " " for line in lines) <= MOST_STAGES
    assert not re.search(r"=\w+_dtype|check_", " ".join(lines))
    for line in lines:
        head = re.match(r"[\w.]*", line.strip())[0]
        ends = line.endswith((" times", " not added"))
        of_branches = ends or line.strip().startswith("*(")
        known = head in adam_jax.__all__ or head.startswith("optax.")
        assert known or of_branches, line
    if name in PARENTS:
        rows = compare_lines(name, PARENTS[name])
        assert [line for line, _, _ in rows if line] == lines
        assert any(differs for _, _, differs in rows)


@every
def test_a_docstring_says_what_it_is_where_it_is_from_and_what_for(name):
    text = inspect.getdoc(OPTIMIZERS[name])
    assert text.startswith("Build ")
    for section in ("Args:", "Raises:", "Example:", "\nReference:", "\nWhen:", ">>> "):
        assert section in text, section
    for argument in inspect.signature(OPTIMIZERS[name]).parameters:
        assert re.search(rf"^  {argument}: ", text, re.MULTILINE), argument


@pytest.mark.parametrize("name", ["adm", "", "ADAM", 3])
def test_names_that_are_not_there(name):
    with pytest.raises(ValueError, match="there is no optimizer"):
        chain_lines(name)


def adam_rule(grads, param, b2=0.999):
    mu = nu = 0.0
    for t, g in enumerate(grads, 1):
        mu, nu = 0.9 * mu + 0.1 * g, b2 * nu + (1 - b2) * g * g
        root = (nu / (1 - b2**t)) ** 0.5 + 1e-8
        yield -1e-3 * mu / (1 - 0.9**t) / root


def test_a_rule_is_followed_or_the_step_is_named():
    assert_follows(adam(1e-3), adam_rule)
    with pytest.raises(AssertionError, match="step 2, parameter 0: the update is"):
        assert_follows(adam(1e-3, b2=0.99), adam_rule)
    with pytest.raises(AssertionError, match="gave 199 updates for 200"):
        assert_follows(adam(1e-3), lambda grads, param: adam_rule(grads[1:], param))


def test_a_late_error_and_a_small_one_are_seen():
    def late(grads, param):
        for t, update in enumerate(adam_rule(grads, param)):
            yield update * (1 + 1e-11 * (t == 199))

    with pytest.raises(AssertionError, match="step 200, parameter 0"):
        assert_follows(adam(1e-3), late)


def test_branches_and_chains_within_stages_have_lines_of_their_own():
    assert chain_lines("ademamix")[1:6] == [
        "add_branches() around",
        "    1.0 times",
        "        bias_correct()",
        "    alpha times",
        "        take_gradients()",
    ]
    assert chain_lines("stable_spam")[4:6] == [
        "adjust_leaves(norm, resize) around",
        "    scale_by_moments(norm_b1, norm_b2)",
    ]
    assert "adjust_leaves(norm, shorten)" in chain_lines("mars_adamw")
