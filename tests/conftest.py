"""Eight CPU devices for the sharding tests: set before JAX starts its backend."""

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

collect_ignore = ["reference"]  # a script that needs PyTorch
