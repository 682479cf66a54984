"""What must be set before JAX starts."""

import os
from pathlib import Path

# Eight CPU devices, for the sharding tests.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
# What is compiled is kept, for the other workers and the next run: they take a third of
# the time.
_KEPT = Path(__file__).parents[1] / ".pytest_cache" / "compiled"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_KEPT))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

collect_ignore = ["reference"]  # a script that needs PyTorch
