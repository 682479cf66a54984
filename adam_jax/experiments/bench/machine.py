"""The machine and the versions that figures belong to."""

import datetime
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

from adam_jax import fused
from adam_jax.experiments.bench.problems import total_bytes
from adam_jax.experiments.bench.steppers import cores

PACKAGES = ("adam_jax", "jax", "jaxlib", "optax", "numpy", "torch", "rollfast")


def describe_machine() -> dict[str, Any]:
    """Return what a reader of the figures must know; call it before the run."""
    return {
        "cpu": _cpu_model(),
        "cores": cores(),
        "memory_bytes": total_bytes(),
        "os": platform.platform(),
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "fused_backend": fused.backend(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "load_average": os.getloadavg() if hasattr(os, "getloadavg") else None,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
