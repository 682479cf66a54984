"""The family tree: which optimizer each one changes, and in which lines."""

import ast
import difflib
import inspect
import textwrap
from typing import Any

from adam_jax.family.table import OPTIMIZERS, PARENTS
from adam_jax.hyperparams import shown

_TAB = " " * 4
# Stages around others, and how many arguments they have of their own before those.
_AROUND = {
    "within": 1,
    "on_matrices": 0,
    "divide_by_rms": 0,
    "adjust_leaves": 2,
    "add_branches": 0,
}


def lineage(name: str) -> list[str]:
    """Return an optimizer's ancestors from the root to itself.

    Args:
      name: the name in `OPTIMIZERS`.

    Raises:
      ValueError: if there is no such optimizer.

    >>> lineage("nadamw")
    ['sgd', 'adagrad', 'rmsprop', 'adam', 'adamw', 'nadamw']
    """
    expect_name(name)
    return [*(lineage(PARENTS[name]) if name in PARENTS else []), name]


def children(name: str) -> list[str]:
    """Return the optimizers that change this one, in the order of the table.

    Args:
      name: the name in `OPTIMIZERS`.

    >>> children("adamax")
    ['adamaxw']
    """
    return [child for child in OPTIMIZERS if PARENTS.get(child) == name]


def chain_lines(name: str) -> list[str]:
    """Return the chain of an optimizer at its defaults, one line of source a stage.

    Stages and arguments that are switched off by default are left out, and so are the
    arguments that say how moments are stored, since all have them.

    Args:
      name: the name in `OPTIMIZERS`.

    Raises:
      ValueError: if there is no such optimizer.

    >>> print(*chain_lines("nadam"), sep="\\n")
    scale_by_moments(b1=ema(b1, nesterov=True), b2=b2)
    bias_correct()
    precondition(eps=eps)
    scale_by_lr(learning_rate)
    """
    expect_name(name)
    make = OPTIMIZERS[name]
    (function,) = ast.parse(textwrap.dedent(inspect.getsource(make))).body
    assert isinstance(function, ast.FunctionDef)
    *_, last = function.body  # of functions inside, the returns are others
    value = getattr(last, "value", None) or ast.Constant(None)
    defaults = {
        x.name: x.default
        for x in inspect.signature(make).parameters.values()
        if x.default in (True, False, None, 0.0)
    }
    short = _AtDefaults(defaults, make.__globals__)
    lines = []
    for call in _chains(value):
        for stage in call.args[1:]:
            stages = short.visit(stage)
            for one in stages if isinstance(stages, list) else [stages]:
                lines += _to_lines(one)
    # What stands around the chain comes last: it has the last word on the updates.
    return lines if _is_chain(value) else [*lines, ast.unparse(short.visit(value))]


def compare_lines(name: str, other: str) -> list[tuple[str, str, bool]]:
    """Return two chains side by side, as (line, the other line, they differ).

    A line that only one of them has stands beside an empty one.

    Args:
      name: the name in `OPTIMIZERS`.
      other: the same, of the other one.

    Raises:
      ValueError: if there is no such optimizer.

    >>> for line, other, differs in compare_lines("nadam", "adam"):
    ...     print(f"{line:51}{other if differs else ''}".rstrip())
    scale_by_moments(b1=ema(b1, nesterov=True), b2=b2) scale_by_moments(b1=b1, b2=b2)
    bias_correct()
    precondition(eps=eps)
    scale_by_lr(learning_rate)
    """
    ours, theirs = chain_lines(name), chain_lines(other)
    rows = []
    stripped = [[line.strip() for line in lines] for lines in (ours, theirs)]
    matcher = difflib.SequenceMatcher(None, *stripped, autojunk=False)
    for tag, start, stop, other_start, other_stop in matcher.get_opcodes():
        left, right = ours[start:stop], theirs[other_start:other_stop]
        longest = max(len(left), len(right))
        left, right = (x + [""] * (longest - len(x)) for x in (left, right))
        rows += zip(left, right, [tag != "equal"] * longest, strict=True)
    return rows


def expect_name(name: str) -> None:
    """Refuse the name of an optimizer that is not there.

    Args:
      name: the name.

    Raises:
      ValueError: if it is not in `OPTIMIZERS`.
    """
    if name not in OPTIMIZERS:
        close = difflib.get_close_matches(str(name), OPTIMIZERS, 1, 0.5)
        cure = f"did you mean {close[0]!r}?" if close else "see OPTIMIZERS."
        raise ValueError(f"there is no optimizer {shown(name)}: {cure}")


def _is_chain(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "chain"


def _chains(node: ast.AST) -> list[ast.Call]:
    """Return the calls of `chain` in an expression."""
    return [x for x in ast.walk(node) if isinstance(x, ast.Call) and _is_chain(x)]


def _to_lines(stage: ast.AST, indent: str = "") -> list[str]:
    """Return the lines of a stage: several if it has other stages in it."""
    if isinstance(stage, ast.Tuple):  # a branch
        factor, one = stage.elts
        none = isinstance(factor, ast.Constant) and factor.value is None
        words = "not added" if none else f"{ast.unparse(factor)} times"
        return [f"{indent}{words}", *_to_lines(one, indent + _TAB)]
    name = ast.unparse(stage.func) if isinstance(stage, ast.Call) else ""
    if isinstance(stage, ast.Call) and name == "optax.chain":
        return [line for one in stage.args for line in _to_lines(one, indent)]
    own = _AROUND.get(name, 0)
    if not isinstance(stage, ast.Call) or name not in _AROUND or not stage.args[own:]:
        return [indent + ast.unparse(stage)]
    inner = stage.args[own:]
    head = ast.Call(stage.func, stage.args[:own], stage.keywords)
    lines = [line for one in inner for line in _to_lines(one, indent + _TAB)]
    return [f"{indent}{ast.unparse(head)} around", *lines]


class _AtDefaults(ast.NodeTransformer):
    """Shortens the source of a chain to what it does at the optimizer's defaults."""

    def __init__(self, defaults: dict[str, Any], names: dict[str, Any]) -> None:
        """Start with the arguments that are True, False, None or 0, and all names."""
        self.defaults, self.names = defaults, names

    def visit_Starred(self, node: ast.Starred) -> Any:
        """Return the stages of `*([stage, ...] if option else [])`."""
        stages = self.visit(node.value)
        return stages.elts if isinstance(stages, ast.List) else node

    def visit_IfExp(self, node: ast.IfExp) -> Any:
        """Choose the branch of the defaults."""
        names = {x.id for x in ast.walk(node.test) if isinstance(x, ast.Name)}
        if not names <= self.defaults.keys():
            return self.generic_visit(node)
        test = eval(ast.unparse(node.test), {"__builtins__": {}}, self.defaults)
        return self.visit(node.body if test else node.orelse)

    def visit_Call(self, node: ast.Call) -> Any:
        """Leave out checks, storage and what is off; a chain has lines of its own."""
        if _is_chain(node):
            return ast.Constant(...)
        function = ast.unparse(node.func)
        if function.startswith("check_"):
            return self.visit(node.args[1])
        node.args = [self.visit(x) for x in node.args]
        node.keywords = [
            ast.keyword(x.arg, self.visit(self._default_of(x)))
            for x in node.keywords
            if x.arg != "argument"
            and not ast.unparse(x.value).endswith("_dtype")
            and self._is_on(x, function)
        ]
        if function == "ema" and len(node.args) == 1 and not node.keywords:
            return node.args[0]
        return node

    def _is_on(self, keyword: ast.keyword, function: str) -> bool:
        """Return whether an argument says something at the defaults of both."""
        value = self._default_of(keyword)
        if isinstance(value, ast.Constant):
            return value is keyword.value
        if ast.unparse(value) == "True" and callable(self.names.get(function)):
            own = inspect.signature(self.names[function]).parameters
            argument = own.get(keyword.arg or "")
            return argument is None or argument.default is not True
        return True

    def _default_of(self, keyword: ast.keyword) -> ast.expr:
        """Return the default that an argument passes on, or its own value."""
        value = keyword.value
        if not isinstance(value, ast.Name) or value.id not in self.defaults:
            return value
        on = self.defaults[value.id] is True
        return ast.Name("True") if on else ast.Constant(None)
