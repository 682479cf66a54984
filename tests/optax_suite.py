"""Run Optax's own tests with our optimizers in place of Optax's: `make optax-suite`.

Optax's wheel ships its tests. Those that name one of our optimizers are run with ours
put into `optax` and `optax._src.alias`. What is left out, and why, stands below.
"""

import pathlib
import sys

import optax
import pytest
from optax._src import alias

from adam_jax import OPTIMIZERS

FILES = [
    "_src/alias_test.py",
    "_src/combine_test.py",
    "_src/float64_test.py",
    "_src/lookahead_test.py",
    "_src/sharding_test.py",
    "_src/transform_test.py",
    "contrib/_schedule_free_test.py",
    "schedules/_inject_test.py",
    "transforms",
    "tree_utils/_state_utils_test.py",
]

# A wrapper there; and one whose tests want a warning that it is deprecated there.
UNLIKE = {"lookahead", "optimistic_adam"}

LEFT_OUT = {
    # Not ours, and slow.
    "LBFGS": "tests of L-BFGS",
    "test_against_s": "tests of L-BFGS",
    "test_clip_by_block_rms": "fails with Optax's own optimizers on this JAX",
    "test_bad_structure_raises": "fails with Optax's own optimizers on this JAX",
    "test_selective_bad_structure": "fails with Optax's own optimizers on this JAX",
    # Meant to be different.
    "StateUtilsTest::test_adam": "compares with Optax's private state classes",
    "test_map_params_to_none": "compares with Optax's private state classes",
    "test_map_non_params_to_none": "compares with Optax's private state classes",
    "test_explicit_dtype9": "wants bfloat16 moments for bfloat16 parameters",
    "test_explicit_dtype10": "wants bfloat16 moments for bfloat16 parameters",
    "test_explicit_dtype11": "wants bfloat16 moments for bfloat16 parameters",
    "test_schedule_free_adamw": "expects the float32 error of Optax's bias correction",
}


class Substitute:
    """A pytest plugin that leaves out what LEFT_OUT names, and says so."""

    def pytest_collection_modifyitems(self, config, items):
        def reason(item):
            return next(
                (why for part, why in LEFT_OUT.items() if part in item.nodeid), ""
            )

        left_out = [item for item in items if reason(item)]
        for item in left_out:
            if "L-BFGS" not in reason(item):
                print(f"left out: {item.nodeid.split('::')[-1]}: {reason(item)}")
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not reason(item)]


if __name__ == "__main__":
    for name, factory in OPTIMIZERS.items():
        if hasattr(alias, name) and name not in UNLIKE:
            setattr(alias, name, factory)
            setattr(optax, name, factory)
    root = pathlib.Path(optax.__file__).parent
    # Without our own options, which would run the examples in docstrings, too.
    options = ["-q", "-p", "no:cacheprovider", f"--rootdir={root}", "-W", "default"]
    options += ["-o", "addopts="]
    sys.exit(
        pytest.main(
            [*options, *sys.argv[1:], *(str(root / f) for f in FILES)],
            plugins=[Substitute()],
        )
    )
