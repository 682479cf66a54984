"""What a step takes at 7B, 70B and 1T parameters: `python benchmarks/at_scale.py`

On paper: nothing here needs a device. Models are shapes, and what a device holds of
them is what `state_shardings` says on an abstract mesh of 8 to 4,096 chips.

  bytes   Of parameters, gradients and state of a device, in each format; what of it is
          held more than once; into which chips it fits, without activations. Then the
          bytes that a step moves in main memory: the least, which is to read once what
          is needed and to write once what changes. `make compiled` asserts which steps
          move no more. The milliseconds are those bytes at the datasheet's bandwidth: a
          bound, no measurement. Last what a device receives from others, of gradients,
          parameters and updates.
  leaves  What breaks first: CPU seconds to trace and to compile a step of many small
          leaves, and milliseconds of a step, for optax.adamw and for ours, each in a
          process of its own that ends after --limit CPU seconds; then the same
          parameters as stacked layers. With --compiled v5e it compiles for that, where
          libtpu is installed.

`make bench` runs it.
"""

import argparse
import functools
import math
import multiprocessing
import resource
import signal
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

import adam_jax
from adam_jax.experiments.bench.candidates import CANDIDATES, FORMATS
from adam_jax.experiments.bench.compiled import find_devices, place
from adam_jax.experiments.bench.sizes import parse_size

GIB = 2**30


class Leaf(NamedTuple):
    """A parameter: its shape, and what each axis is."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]


def leaf(**axes):
    """Return a leaf from the lengths of its axes, by what they are."""
    return Leaf(tuple(axes.values()), tuple(axes))


def stack(block, **axis):
    """Return the leaves of a block with one more axis in front."""
    [(name, length)] = axis.items()
    return {key: Leaf((length, *x.shape), (name, *x.axes)) for key, x in block.items()}


def unstack(model, axis):
    """Return a model with a leaf for each index of an axis that comes first."""
    leaves = {}
    for key, x in model.items():
        if x.axes[0] == axis:
            own = Leaf(x.shape[1:], x.axes[1:])
            leaves |= {f"{key}_{i}": own for i in range(x.shape[0])}
        else:
            leaves[key] = x
    return leaves


def make_ends(vocabulary, width):
    return {
        "embedding": leaf(wide=vocabulary, width=width),
        "norm": leaf(width=width),
        "head": leaf(width=width, wide=vocabulary),
    }


def make_mlp(width, hidden):
    return {
        "gate": leaf(width=width, wide=hidden),
        "up": leaf(width=width, wide=hidden),
        "down": leaf(wide=hidden, width=width),
    }


def make_llama(layers, width, hidden, keys, vocabulary=32000):
    """Return the leaves of Llama 2, stacked; `keys` is the width of keys and values."""
    block = {
        "attention_norm": leaf(width=width),
        "q": leaf(width=width, wide=width),
        "k": leaf(width=width, wide=keys),
        "v": leaf(width=width, wide=keys),
        "o": leaf(wide=width, width=width),
        "mlp_norm": leaf(width=width),
        **make_mlp(width, hidden),
    }
    return stack(block, layers=layers) | make_ends(vocabulary, width)


def make_experts(layers=60, width=7168, hidden=2048, experts=384):
    """Return the leaves of a mixture of experts in the shapes of Kimi K2, stacked."""
    heads, queries, keys = 64, 1536, 512
    attention = {
        "attention_norm": leaf(width=width),
        "q_a": leaf(width=width, rank=queries),
        "q_norm": leaf(rank=queries),
        "q_b": leaf(rank=queries, wide=heads * 192),
        "kv_a": leaf(width=width, rank=keys + 64),
        "kv_norm": leaf(rank=keys),
        "kv_b": leaf(rank=keys, wide=heads * 256),
        "o": leaf(wide=heads * 128, width=width),
        "mlp_norm": leaf(width=width),
    }
    routed = stack(make_mlp(width, hidden), experts=experts)
    shared = make_mlp(width, hidden)
    block = {
        **attention,
        "router": leaf(width=width, rank=experts),
        "router_bias": leaf(rank=experts),
        **{f"routed_{key}": x for key, x in routed.items()},
        **{f"shared_{key}": x for key, x in shared.items()},
    }
    first = {f"first_{k}": x for k, x in (attention | make_mlp(width, 18432)).items()}
    return stack(block, layers=layers) | first | make_ends(163840, width)


MODELS = {
    "7B": make_llama(layers=32, width=4096, hidden=11008, keys=4096),
    "70B": make_llama(layers=80, width=8192, hidden=28672, keys=1024),
    "1T": make_experts(),
}


def adamw(mu="float32", nu="float32"):
    return adam_jax.adamw(1e-3, mu_dtype=mu, nu_dtype=nu)


# What is stepped, and the dtype of parameters and gradients.
STEPS = {
    "float32": (adamw(), "float32"),
    "mu bfloat16": (adamw("bfloat16"), "float32"),
    "bfloat16": (adamw("bfloat16", "bfloat16"), "float32"),
    "8bit": (adamw("8bit", "8bit"), "float32"),
    "factored nu": (adamw(nu=adam_jax.factored()), "float32"),
    "compensate_params": (adam_jax.compensate_params(adamw()), "bfloat16"),
    "round_to_params, bfloat16": (
        adam_jax.round_to_params(adamw("bfloat16", "bfloat16")),
        "bfloat16",
    ),
    "round_to_params, 8bit": (
        adam_jax.round_to_params(adamw("8bit", "8bit")),
        "bfloat16",
    ),
}
# Its means of all squares come before the step, which reads the gradients once more.
READS_TWICE = ("factored nu",)
# Chips: how many along the axis "data", and how many along "model".
MESHES = {8: (2, 4), 64: (8, 8), 512: (64, 8), 4096: (512, 8)}
# The axis of the mesh over which each axis of a parameter is cut, and that over which
# moments are cut as well. An axis of the mesh cuts the first that asks for it.
_MODEL = {"experts": "model", "wide": "model"}
CUTS = {
    "replicated": ({}, None),
    "ZeRO-1": (_MODEL, "data"),
    "FSDP": (_MODEL | {"width": "data", "rank": "data"}, None),
}


class Chip(NamedTuple):
    """What the datasheet says: bytes of memory, and bytes a second from and to it."""

    memory: float
    bandwidth: float


CHIPS = {
    "v5e": Chip(16 * GIB, 819e9),
    "H100": Chip(80e9, 3.35e12),
    "v5p": Chip(95 * GIB, 2.765e12),
}


def lay(model, chips, cut, dtype):
    """Return the parameters of a model on an abstract mesh.

    Args:
      model: leaves by name.
      chips: one of `MESHES`.
      cut: one of `CUTS`.
      dtype: of the parameters.
    """
    # Blocks of 8-bit moments fit the shards of explicit axes.
    mesh = AbstractMesh(
        MESHES[chips], ("data", "model"), axis_types=(AxisType.Explicit,) * 2
    )
    wanted, _ = CUTS[cut]

    def put(x):
        entries: list[str | None] = []
        for length, axis in zip(x.shape, x.axes, strict=True):
            over = wanted.get(axis)
            fits = over and over not in entries and length % mesh.shape[over] == 0
            entries.append(over if fits else None)
        sharding = NamedSharding(mesh, PartitionSpec(*entries))
        return jax.ShapeDtypeStruct(x.shape, dtype, sharding=sharding)

    return {name: put(x) for name, x in model.items()}


def count_bytes(tree, shardings=None):
    """Return the bytes of a tree: all of them, or those of a device."""
    leaves = jax.tree.leaves(tree)
    shapes = [x.shape for x in leaves]
    if shardings is not None:
        where = jax.tree.leaves(shardings)
        shapes = [x.shard_shape(y) for x, y in zip(where, shapes, strict=True)]
    sizes = [x.dtype.itemsize for x in leaves]
    return sum(n * math.prod(shape) for n, shape in zip(sizes, shapes, strict=True))


class Need(NamedTuple):
    """What a device holds, moves and receives in a step, in bytes.

    Attributes:
      params: of parameters, and as many of gradients.
      state: of the optimizer's state.
      repeated: of all three, what is more than an even share of one copy.
      moved: the least that a step moves in main memory.
      received: from other devices, for the sum of gradients and for whole parameters.
    """

    params: int
    state: int
    repeated: float
    moved: int
    received: float

    @property
    def held(self):
        """Bytes of parameters, gradients and state."""
        return 2 * self.params + self.state


def find_need(model, chips, cut, step):
    """Return what a device needs.

    Args:
      model: leaves by name.
      chips: one of `MESHES`.
      cut: one of `CUTS`.
      step: one of `STEPS`.
    """
    tx, dtype = STEPS[step]
    params = lay(model, chips, cut, dtype)
    state = jax.eval_shape(tx.init, params)
    shardings = adam_jax.state_shardings(tx, params, over=CUTS[cut][1])
    local = count_bytes(params, jax.tree.map(lambda x: x.sharding, params))
    own = count_bytes(state, shardings)
    even = (2 * count_bytes(params) + count_bytes(state)) / chips
    return Need(
        params=local,
        state=own,
        repeated=2 * local + own - even,
        moved=(3 + (step in READS_TWICE)) * local + 2 * own,
        received=count_received(params, optax.tree.get(shardings, "mu"), cut, step),
    )


def count_received(params, mu, cut, step):
    """Return the bytes of gradients, parameters and updates that a device receives.

    To sum arrays into pieces, or to gather pieces, a device receives the whole but its
    own piece. Where parameters are in pieces over the axis "data", they are gathered
    for the forward and the backward pass, and gradients summed into pieces. Where
    moments are, gradients are summed into pieces and updates gathered. Elsewhere
    gradients are summed into pieces and these gathered.

    Args:
      params: laid by `lay`.
      mu: the sharding of each first moment.
      cut: one of `CUTS`.
      step: one of `STEPS`.
    """
    received = 0.0
    for name, x in params.items():
        mesh, width = x.sharding.mesh, x.dtype.itemsize
        pieces = mesh.size if cut == "replicated" else mesh.shape["data"]
        kept = [axis if axis != "data" else None for axis in x.sharding.spec]
        whole = NamedSharding(mesh, PartitionSpec(*kept)).shard_shape(x.shape)
        if "data" in x.sharding.spec:
            widths = 3 * width
        elif "data" in mu[name].spec:
            widths = width + find_update_width(step)
        else:
            widths = 2 * width
        received += math.prod(whole) * widths * (pieces - 1) / pieces
    return received


@functools.cache
def find_update_width(step):
    """Return the bytes of an element of the updates of one of `STEPS`."""
    tx, dtype = STEPS[step]
    params = jax.ShapeDtypeStruct((8,), dtype)
    state = jax.eval_shape(tx.init, params)
    return jax.eval_shape(tx.update, params, state, params)[0].dtype.itemsize


def print_needs(name):
    """Print what a device needs for a model, a line for each mesh and format."""
    model = MODELS[name]
    by_layer = unstack(model, "layers")
    counts = {
        "stacked": len(model),
        "one for each layer": len(by_layer),
        "and for each expert": len(unstack(by_layer, "experts")),
    }
    size = sum(math.prod(x.shape) for x in model.values())
    told = ", ".join(f"{count:,} {how}" for how, count in counts.items())
    print(f"\n{name}: {size:,} parameters; leaves: {told}")
    print(
        f"{'chips':>5} {'cut':10} {'format':25} {'params':>9} {'grads':>9} "
        f"{'state':>9} {'sum':>9} {'repeated':>8} {'fits into':13} {'moved':>9} "
        + " ".join(f"{'ms ' + chip:>8}" for chip in CHIPS)
        + f" {'received':>9}"
    )
    for cut in CUTS:
        for chips in MESHES:
            for step in STEPS:
                need = find_need(model, chips, cut, step)
                print(f"{chips:5} {cut:10} {step:25} {describe(need)}", flush=True)


def describe(need):
    """Return the figures of a line, in GiB and milliseconds."""
    sizes = (need.params, need.params, need.state, need.held)
    fits = [name for name, chip in CHIPS.items() if need.held <= chip.memory]
    return (
        " ".join(f"{size / GIB:9.3f}" for size in sizes)
        + f" {need.repeated / need.held:8.1%} {' '.join(fits) or 'none':13} "
        + f"{need.moved / GIB:9.3f} "
        + " ".join(f"{1e3 * need.moved / c.bandwidth:8.2f}" for c in CHIPS.values())
        + f" {need.received / GIB:9.3f}"
    )


LEAVES = (10, 100, 1000, 3000)  # 10,000 take 14 GB and more to compile
LEAF = "32,128"  # the smallest that 8-bit moments code
STACKED = f"10x1000,{LEAF}"  # the parameters of 10,000 such leaves
LEAST_SECONDS = 0.5  # in which steps are counted
CONTEXT = multiprocessing.get_context("spawn")
# Names of candidates and formats of `adam-jax bench`; the first is the base.
CASES = (
    ("optax", "float32"),
    ("adamw", "float32"),
    ("adamw", "bfloat16"),
    ("adamw", "8bit"),
    ("fused_step", "8bit"),
    ("skip_nonfinite", "float32"),
    ("record_default", "float32"),
)


def measure(sender, candidate, format, size, machine, limit, compiles):
    """Send {what: CPU seconds} after each stage of a case. Runs in its own process."""
    devices = find_devices(machine) if machine else []  # before a fused step asks JAX
    program = CANDIDATES[candidate].program(FORMATS[format])
    dtype = FORMATS[format].dtype
    params = [jax.ShapeDtypeStruct(x, dtype) for x in parse_size(size).shapes]
    params = place(params, devices) if devices else params
    state = jax.eval_shape(program.init, params)
    state = place(state, devices) if devices else state
    jax.block_until_ready(jnp.zeros(1) + 1)  # what only the first program takes
    start = time.process_time()
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(start + limit), -1))

    def lap():
        nonlocal start
        before, start = start, time.process_time()
        return start - before

    jitted = jax.jit(program.step, donate_argnums=(0, 1))
    lowered = jitted.trace(params, state, params).lower()
    sender.send({"trace": lap()})
    if not compiles:
        return
    compiled = lowered.compile()
    sender.send({"compile": lap()})
    if not machine:
        params, state, grads = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype), (params, state, params)
        )
        params, state = jax.block_until_ready(compiled(params, state, grads))
        steps, start = 0, time.process_time()
        while time.process_time() - start < LEAST_SECONDS:
            params, state = compiled(params, state, grads)
            jax.block_until_ready(state)
            steps += 1
        sender.send({"step": lap() / steps})


def run_case(*case):
    """Return what `measure` sends before its limit, or before memory is out."""
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=measure, args=(sender, *case))
    process.start()
    sender.close()
    found = {}
    try:
        while True:
            found |= receiver.recv()
    except EOFError:
        process.join()
    # The system kills a process where memory is out.
    if process.exitcode not in (0, -signal.SIGXCPU, -signal.SIGKILL):
        raise RuntimeError(f"{case} ended with {process.exitcode}")
    return found


def print_leaves(sizes, cases, machine, limit):
    """Print the seconds of each case at each size, and what they are of the base's."""
    print(
        f"\nCPU seconds to trace and to compile for {machine or 'this CPU'}, CPU "
        f"milliseconds of a step; x: of the first's; ended: at {limit:g} CPU seconds, "
        "or where memory was out"
    )
    print(
        f"{'leaves':>14} {'step of':14} {'format':9} {'trace':>7} {'x':>5} "
        f"{'compile':>9} {'x':>5} {'step ms':>8} {'x':>5}"
    )
    too_long = set()
    for size in sizes:
        base = None
        for case in cases:
            # What took too long takes longer with more leaves: it is only traced.
            compiles = case not in too_long or size == STACKED
            found = run_case(*case, size, machine, limit, compiles)
            if "compile" not in found:
                too_long.add(case)
            base = base or found
            print(
                f"{size:>14} {case[0]:14} {case[1]:9} {tell(found, base)}",
                flush=True,
            )


def tell(found, base):
    """Return the figures of a line."""
    ended = next((what for what in ("trace", "compile") if what not in found), None)
    cells = []
    for what, width, unit in (("trace", 7, 1), ("compile", 9, 1), ("step", 8, 1e3)):
        figure = f"{unit * found[what]:.2f}" if what in found else ""
        figure = "ended" if what == ended else figure
        has_ratio = what in found and what in base
        ratio = f"{found[what] / base[what]:.1f}" if has_ratio else ""
        cells.append(f"{figure:>{width}} {ratio:>5}")
    return " ".join(cells)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("part", nargs="?", choices=("bytes", "leaves"), help="by default both")
    add("--compiled", help="a machine, as v5e, to compile leaves for")
    add("--sizes", nargs="+", help="leaves, as `adam-jax bench` reads them")
    add("--limit", type=float, default=120, help="CPU seconds of a case")
    options = parser.parse_args()
    if options.part != "leaves":
        print("GiB of a device, without activations; ms at the datasheet's bandwidth: ")
        print("a bound, no measurement")
        for name in MODELS:
            print_needs(name)
    if options.part != "bytes":
        sizes = options.sizes or [*(f"{n}x{LEAF}" for n in LEAVES), STACKED]
        print_leaves(sizes, CASES, options.compiled, options.limit)


if __name__ == "__main__":
    main()
