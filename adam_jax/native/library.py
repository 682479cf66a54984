"""The compiled library of native code for CPUs, and the XLA calls that it holds."""

import ctypes
import functools
import pathlib
import re
import sys

import jax

STEP = "adam_jax_fused_step"
LOAD = "adam_jax_load_moment"
STORE = "adam_jax_store_moment"
SUM = "adam_jax_sum_leaf"
_CALLS = {
    STEP: "AdamJaxStep",
    LOAD: "AdamJaxLoadMoment",
    STORE: "AdamJaxStoreMoment",
    SUM: "AdamJaxSumLeaf",
}
LARGEST_BLOCK = 2**24
"""Blocks of 8-bit codes of this many elements are too large for the library."""


def available() -> bool:
    """Return whether the library was built, can be loaded and fits this jaxlib."""
    return load_library() is not None


@functools.cache
def load_library() -> ctypes.CDLL | None:
    """Load the library and register it with XLA; return None if not `available()`."""
    # An editable install keeps the library in a separate folder.
    folders = [
        pathlib.Path(folder)
        for folder in sys.modules[__name__.rpartition(".")[0]].__path__
    ]
    for path in [path for f in folders for path in sorted(f.glob("adam_native.*"))]:
        try:
            loaded = ctypes.CDLL(str(path))
        except OSError:  # for another machine, or truncated
            continue
        # With a library for a newer FFI, XLA would fail to start.
        if loaded.AdamJaxFfiMinorVersion() <= _ffi_minor_version():
            for name, symbol in _CALLS.items():
                call = jax.ffi.pycapsule(getattr(loaded, symbol))
                jax.ffi.register_ffi_target(name, call, platform="cpu")
            return loaded
    return None


def _ffi_minor_version() -> int:
    """Return the version of XLA's FFI in jaxlib, which only its header contains."""
    header = pathlib.Path(jax.ffi.include_dir(), "xla/ffi/api/c_api.h")
    if not header.is_file():
        return -1
    [version] = re.findall(r"#define XLA_FFI_API_MINOR (\d+)", header.read_text())
    return int(version)
