"""What a step moves on a TPU or GPU, read off the program that XLA compiles for it.

XLA compiles for a machine that is only described. So none is needed, nothing is run,
and what is read is traffic, not time.
"""

import collections
import importlib.util
import math
import os
import re
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from adam_jax.experiments.settings.config import require_known

# Of each kind, the 16 chips out of which one is compiled for.
CHIPS = {"v5e": "4x4", "v5p": "2x2x4", "v6e": "4x4", "h100": "1x1x16"}

_TPU_SETTINGS = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # or a second process would be aborted
    "TPU_SKIP_MDS_QUERY": "1",  # or it would look for a TPU in the network
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_MIN_LOG_LEVEL": "3",
}
_H100 = """gpu_device_info {
  cuda_compute_capability { major: 9 }
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84978434048
  shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


class Cost(NamedTuple):
    """What one device does in a step."""

    # Bytes read from and written to main memory, by operands and results; what is moved
    # inside of branches is not counted.
    moved: int
    temporary: int  # bytes beside arguments and results
    not_in_place: int  # bytes of results that do not lie where an argument lay
    fusions: int
    copies: int  # and transpositions
    branches: int  # conditionals and loops
    collectives: dict[str, int]  # how many there are of each kind


def packages(kind: str) -> str:
    """Return what pip is to install, without dependencies, to compile for a kind."""
    if kind == "h100":
        version = jax.__version__
        return f"jax-cuda12-plugin=={version} jax-cuda12-pjrt=={version}"
    return "libtpu==0.0.52"


def find_devices(target: str) -> list[Any]:
    """Return described devices: one of a kind as "v5e", all of "v5e:4x4"."""
    kind, _, chips = target.partition(":")
    expected = f"one of {', '.join(CHIPS)}, perhaps with its chips, as in v5e:4x4"
    require_known("compiled", kind, CHIPS, expected)
    needed = ("jax_cuda12_plugin", "jax_plugins") if kind == "h100" else ("libtpu",)
    if not all(map(importlib.util.find_spec, needed)):
        raise ValueError(
            f"to compile for {kind}, run pip install --no-deps {packages(kind)}"
        )
    jax.config.update("jax_platforms", "cpu")  # or JAX would look for a real one
    for name, value in _TPU_SETTINGS.items():
        os.environ.setdefault(name, value)
    shape = chips or CHIPS[kind]
    try:
        if kind == "h100":
            described = topologies.get_topology_desc(
                kind, "cuda", target_config=_H100, topology=shape
            )
        else:
            described = topologies.get_topology_desc(f"{kind}:{shape}", "tpu")
    except Exception as error:  # of any kind: it comes out of the plugin
        first = str(error).strip().splitlines()[0]
        raise ValueError(f"cannot compile for {target}: {first}") from error
    return list(described.devices) if chips else described.devices[:1]


def place(tree: Any, devices: list[Any]) -> Any:
    """Lay arrays on one device, or cut each along the first axis that allows it."""
    mesh = Mesh(np.array(devices), ("chips",))

    def put(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        can_cut = [i for i, n in enumerate(x.shape) if n and n % len(devices) == 0]
        spec = [None] * can_cut[0] + ["chips"] if can_cut else []
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        if len(devices) == 1:
            sharding = SingleDeviceSharding(devices[0])
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(put, tree)


def count_local(params: Any) -> int:
    """Count the parameters of one device, of leaves that are placed."""
    leaves = jax.tree.leaves(params)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) for x in leaves)


def read_cost(compiled: Any) -> Cost:
    """Read the cost off what `jax.jit(...).lower(...).compile()` returned."""
    text = compiled.as_text()
    moved, operations = count_traffic(text)
    memory = compiled.memory_analysis()
    return Cost(
        moved,
        memory.temp_size_in_bytes,
        memory.output_size_in_bytes - memory.alias_size_in_bytes,
        fusions=operations["fusion"],
        copies=sum(operations[x] for x in ("copy", "copy-start", "transpose")),
        branches=operations["conditional"] + operations["while"],
        collectives=dict(collections.Counter(_COLLECTIVE.findall(text))),
    )


_COLLECTIVE = re.compile(
    r"\s(all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)"
    r"(?:-start)?\("
)
# Of each line: a name, the type of the result, the operation, its operands, the rest.
_INSTRUCTION = re.compile(
    r"^\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)(?:, (\w+=.*))?$",
    re.M,
)
# A dtype, its bits, the dimensions, the layout.
_ARRAY = re.compile(r"(pred|[a-z]+(\d+)\w*)\[([\d,]*)\](\{[^}]*\})?")
# These read and write nothing.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}


def count_traffic(text: str) -> tuple[int, collections.Counter[str]]:
    """Return the bytes that the entry of an HLO module moves, and its operations.

    Each instruction reads its operands and writes its results once, if they lie in main
    memory: those in a TPU's VMEM are marked S(1).
    """
    [entry] = re.findall(r"^ENTRY [^\n]*\{\n(.*?)^\}", text, re.S | re.M)
    found = _INSTRUCTION.findall(entry)
    results = {name: _measure_arrays(kind) for name, kind, *_ in found}
    total = 0
    for name, _, operation, operands, rest in found:
        if operation in _FREE or operation.endswith("-done"):
            continue
        if "ConcatBitcast" in rest:  # a custom call of TPUs that moves nothing
            continue
        arrays = results[name]
        if operation.endswith("-start"):  # its type: destination, source, context
            least = min(size for size, _ in arrays[:2])
            arrays = [(least, is_fast) for _, is_fast in arrays[:2]]
        else:
            read = {*re.findall(r"%([\w.\-]+)", operands)} & results.keys()
            arrays = [*arrays, *(x for own in read for x in results[own])]
        total += sum(size for size, is_fast in arrays if not is_fast)
    return total, collections.Counter(operation for _, _, operation, *_ in found)


def count_different(text: str) -> int:
    """Return how many of the loops of an HLO module differ: equal ones compile once."""
    bodies = re.findall(r"^%\S+ \([^\n]*\{\n(.*?)^\}", text, re.S | re.M)
    return len({*map(_without_names, bodies)})


def _without_names(body: str) -> str:
    """Return a computation with its instructions numbered, and without comments."""
    body = re.sub(r", (?:metadata|backend_config)=\{[^\n]*", "", body)
    numbers: dict[str, str] = {}
    return re.sub(
        r"%[\w.\-]+", lambda x: numbers.setdefault(x[0], str(len(numbers))), body
    )


def _measure_arrays(kind: str) -> list[tuple[int, bool]]:
    """Return the bytes of each array of a type, and whether it lies in VMEM."""
    return [
        (
            math.prod(map(int, filter(None, dims.split(",")))) * int(bits or 8) // 8,
            "S(1)" in layout,
        )
        for _, bits, dims, layout in _ARRAY.findall(kind)
    ]
