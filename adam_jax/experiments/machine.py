"""The machine and the versions that figures belong to."""

import datetime
import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import psutil

from adam_jax import fused

ENVIRONMENT = "environment.json"
PACKAGES = (
    *("adam_jax", "jax", "jaxlib", "optax", "flax", "numpy"),
    *("torch", "bitsandbytes", "rollfast"),  # what the benchmark compares with
)


def describe_machine() -> dict[str, Any]:
    """Return what a reader of the figures must know; call it before the run."""
    return {
        "cpu": _cpu_model(),
        "cores": cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "os": platform.platform(),
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "fused_backend": fused.backend(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "load_average": psutil.getloadavg(),
    }


def record_environment(folder: Path) -> None:
    """Leave in the folder of a run what it ran on."""
    text = json.dumps(describe_machine(), indent=2) + "\n"
    (folder / ENVIRONMENT).write_text(text, "utf-8")


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # on Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
