"""Which kernels there are."""

from types import ModuleType

from adam_jax.fused.cpu import native
from adam_jax.native import library


def kernels() -> dict[str, ModuleType]:
    """Return the modules of the kernels by the platform that they run on."""
    found = {"cpu": native} if library.available() else {}
    try:  # Pallas takes a moment to import, and is not for every system
        from adam_jax.fused.gpu import triton
        from adam_jax.fused.tpu import mosaic
    except ImportError:
        return found
    return found | {"cuda": triton, "tpu": mosaic}
