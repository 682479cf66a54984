"""Write family.npz: trajectories of other implementations on stored gradients.

Every case runs an optimizer of another library, in float64, on gradients that do not
depend on the parameters. Made with Python 3.11 on CPU. To make it again:

    python3.11 -m venv /tmp/vfamily
    . /tmp/vfamily/bin/activate
    pip install torch==2.13.0 numpy tqdm tabulate colorama einops
    pip install --no-deps pytorch_optimizer==4.1.0 torch_optimizer==0.3.0 \\
        pytorch_ranger==0.1.1 timm==1.0.31 adam_atan2_pytorch==0.4.1 \\
        came_pytorch==0.1.3 adam_mini==1.1.1 heavyball==3.2.1 qhoptim==1.1.0 \\
        adabound==0.0.5 madgrad==1.3 grokfast_pytorch==0.0.11 grams_pytorch==0.0.2 \\
        schedulefree==1.4.1 prodigyopt==1.1.2 galore_torch==1.0 torch_SM3==0.1.0 \\
        torchrec==1.9.2
    python tests/reference/make_family.py /tmp/vfamily_git

The folder named last receives the repositories in REPOSITORIES, whose authors never
packaged them, each at the commit that is given there.

The file holds float64 arrays and one JSON string:

    grads/<leaf>     (steps, *shape)   the gradient of every step
    params0/<leaf>   shape             the parameters before the first step
    params/<case>    (steps, *shape)   the parameters after every step
    cases            JSON: {<case>: {"optimizer", "kwargs", "leaf", "library",
                     "library_kwargs", "rtol", "reason"}}

`optimizer` and `kwargs` are the call that must agree, in our names. `rtol` is how far
it may be off, relative to the mean step of the element; above 1e-9 `reason` says why.
Where two definitions differ in a way that arguments undo, `reason` says that too.
"""

import contextlib
import importlib
import importlib.machinery
import importlib.metadata
import json
import math
import subprocess
import sys
import types
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from family_cases import CASES, LR, STEPS

REPOSITORIES = {  # the commit, and the folder to import from
    "AGI-Arena/MARS": ("4831e28eba863a4e69d7e9474ff8e73bc1b410fe", "MARS/optimizers"),
    "AtheMathmo/AggMo": ("f91730d1c3d8398abb19ab3331e08d39cd5df390", ""),
    "Chongjie-Si/AdaMuon": (
        "369f0b3bd9d97f82bb8ba81664207ac513e233b0",
        "gpt2/models/optimizers",
    ),
    "NVIDIA-NeMo/Emerging-Optimizers": ("fd7729267109a8848709e9406bf19e53e970c3f4", ""),
    "TianjinYellow/StableSPAM": (
        "6a66da1ea7005f7fe7bc570b7968144b42163bed",
        "galore_torch",
    ),
    "juntang-zhuang/ACProp-Optimizer": (
        "a880843025e6c56aa24176662f534fcfe7d556ee",
        "optimizers",
    ),
    "nikhilvyas/SOAP": ("a1e553530fde97d0e6b307d7c82ac6d38b072340", ""),
    "uclaml/Padam": ("586a02bde5021b9bb9d5f621f53f710a9cd06a89", ""),
    "zeke-xie/Positive-Negative-Momentum": (
        "9ffd201fd2ae3c8fb5fb9766fcf6bcf2c07617df",
        "",
    ),
    "zichongli5/NorMuon": ("d45c9a4280d758e2cf0b2b8333765d040e953937", ""),
}


def make_leaves():
    """Return {leaf: (gradients of every step, parameters before the first)}.

    "scales" spans eight decades, has zeros, and one coordinate is silent for the first
    half; "near" spans two and starts away from 0, for libraries that hide 1e-15 in a
    root; "from_zero" is "near", but for a first gradient of 0; the others have scale 1,
    and the second gradient of "settled" is its first.
    """
    rng = np.random.default_rng(2)

    def leaf(shape, scale=1.0):
        drift = 0.5 * rng.normal(size=shape)
        grads = scale * (drift + rng.normal(size=(STEPS, *shape)))
        return grads, rng.uniform(0.5, 1.5, shape) * rng.choice([-1.0, 1.0], shape)

    leaves = {
        "scales": leaf((6,), np.array([1e-6, 1e-3, 1.0, 10.0, 100.0, 1.0])),
        "near": leaf((6,), np.array([0.1, 0.3, 1.0, 3.0, 10.0, 1.0])),
        "vector": leaf((5,)),
        "wide": leaf((4, 6)),
        "tall": leaf((6, 4)),
        "square": leaf((8, 8)),
    }
    for name in "scales", "near":
        grads, _ = leaves[name]
        grads[rng.random(grads.shape) < 0.1] = 0.0
    leaves["scales"][0][: STEPS // 2, -1] = 0.0
    grads, params0 = leaves["near"]
    grads[0] = [0.1, -0.3, 1.0, -3.0, 10.0, 1.0]  # far above 1e-15, squared
    leaves["from_zero"] = np.concatenate([grads[:1] * 0.0, grads[1:]]), params0
    grads, params0 = leaves["vector"]
    leaves["settled"] = np.concatenate([grads[:1], grads[:1], grads[1:-1]]), params0
    return leaves


def open_package(name):
    """Make a package's modules importable without running its __init__."""
    parent = name.rpartition(".")[0]
    where = list(sys.modules[parent].__path__) if parent else None
    spec = importlib.machinery.PathFinder.find_spec(name, where)
    if spec is None:
        raise ModuleNotFoundError(f"{name} is not installed: see the docstring")
    module = types.ModuleType(name)
    module.__path__ = list(spec.submodule_search_locations)
    sys.modules[name] = module


def get_repositories(folder):
    """Check out what is not there yet, and make it importable."""
    for name, (commit, inside) in REPOSITORIES.items():
        path = folder / name.rpartition("/")[2]
        if not path.exists():
            url = f"https://github.com/{name}"
            subprocess.run(["git", "clone", "-q", url, path], check=True)
            subprocess.run(["git", "-C", path, "checkout", "-q", commit], check=True)
        sys.path.append(str(path / inside))


def stand_in():
    """Stand in for what the libraries import and do not need to step."""
    for package in (
        "timm",
        "timm.optim",
        "torchrec",
        "torchrec.optim",
        "galore_torch",
        "emerging_optimizers",
        "emerging_optimizers.scalar_optimizers",
        "emerging_optimizers.scalar_optimizers.update_functions",
        "emerging_optimizers.weight_update_hooks",
    ):
        open_package(package)
    importlib.import_module("pytorch_optimizer")  # looks whether transformers is there
    for name in "transformers", "transformers.utils", "transformers.utils.versions":
        sys.modules[name] = types.ModuleType(name)
    sys.modules["transformers.utils.versions"].require_version = lambda *args: None

    def gather(output, tensor, **kwargs):
        output.copy_(tensor.reshape(output.shape))
        return types.SimpleNamespace(wait=lambda: None)

    torch.distributed.all_gather_into_tensor = gather


@contextlib.contextmanager
def all_in_float64():
    """Undo the casts to fewer digits inside a library: what else it does shows."""

    def to_double(self, *args, **kwargs):
        return self.double().clone()  # a cast never shares memory

    with contextlib.ExitStack() as stack:
        for method in "float", "bfloat16":
            stack.enter_context(mock.patch.object(torch.Tensor, method, to_double))
        for dtype in "float32", "bfloat16", "float":
            stack.enter_context(mock.patch.object(torch, dtype, torch.float64))
        yield


def adam_mini(param, name, **kwargs):
    return importlib.import_module("adam_mini").Adam_mini([(name, param)], **kwargs)


def adamuon(param, **kwargs):
    """Make it without a GPU."""
    empty = torch.empty

    def on_cpu(*size, device, dtype):
        return empty(*size)

    with mock.patch.object(torch, "empty", on_cpu):
        make = importlib.import_module("adamuon").AdaMuon
        return make([param], rank=0, world_size=1, **kwargs)


def galore(param, rank, update_proj_gap, scale, **kwargs):
    group = {"params": [param], "rank": rank, "update_proj_gap": update_proj_gap}
    group |= {"scale": scale, "proj_type": "std"}
    make = importlib.import_module("galore_torch.adamw").AdamW
    return make([group], no_deprecation_warning=True, **kwargs)


def lookahead(param, k, alpha, **kwargs):
    make = importlib.import_module("pytorch_optimizer").Lookahead
    return make(torch.optim.Adam([param], **kwargs), k=k, alpha=alpha)


class Nvidia:
    """Emerging-Optimizers' functions, without its classes: they need Python 3.12."""

    def __init__(self, param, function, lr, hyperball=False, **kwargs):
        module, _, name = function.partition(":")
        path = "emerging_optimizers.scalar_optimizers.update_functions."
        self.update = getattr(importlib.import_module(path + module), name)
        self.param, self.kwargs, self.count = param, kwargs, 0
        self.param_groups = [{"lr": lr, "eps": kwargs.get("eps")}]
        number = 1 if "momentum" in kwargs else 2
        self.moments = [torch.zeros_like(param) for _ in range(number)]
        self.hook = None
        if hyperball:
            path = "emerging_optimizers.weight_update_hooks.hyperball"
            make = importlib.import_module(path).HyperballHook
            self.hook = make(torch.linalg.norm(param.detach()).item())

    @torch.no_grad()
    def step(self):
        self.count += 1
        grad, group = self.param.grad, self.param_groups[0]
        kwargs = self.kwargs | ({"eps": group["eps"]} if group["eps"] else {})
        step = self.update(grad, *self.moments, step=self.count, **kwargs).clone()
        if self.hook is not None:
            self.hook.pre_weight_update_inplace(self.param, step)
        self.param.add_(step, alpha=-group["lr"])
        if self.hook is not None:
            self.hook.post_weight_update_inplace(self.param, None)


def soap(param, **kwargs):
    """Make it without its sorting of eigenvectors."""
    optimizer = importlib.import_module("soap").SOAP([param], **kwargs)
    step = optimizer.step

    def step_unsorted():
        in_place = mock.patch.object(
            torch, "argsort", lambda x, **_: torch.arange(len(x))
        )
        with in_place:
            step()

    optimizer.step = step_unsorted
    return optimizer


SPECIAL = {
    "adam_mini": adam_mini,
    "adamuon": adamuon,
    "galore": galore,
    "lookahead": lookahead,
    "nvidia": Nvidia,
    "soap": soap,
}


# The repository, or what a package is called where its modules are not named after it.
MODULES = {
    "ACProp": "juntang-zhuang/ACProp-Optimizer",
    "Padam": "uclaml/Padam",
    "adamuon": "Chongjie-Si/AdaMuon",
    "mars": "AGI-Arena/MARS",
    "normuon": "zichongli5/NorMuon",
    "nvidia": "NVIDIA-NeMo/Emerging-Optimizers",
    "pnm_optim": "zeke-xie/Positive-Negative-Momentum",
    "soap": "nikhilvyas/SOAP",
    "src": "AtheMathmo/AggMo",
    "stablespam": "TianjinYellow/StableSPAM",
}
DISTRIBUTIONS = {
    "SM3": "torch_SM3",
    "galore": "galore_torch",
    "grams": "grams_pytorch",
    "lookahead": "pytorch_optimizer",
}


def first(betas, t):
    return 1 - betas[0] ** t


def second(betas, t):
    return math.sqrt(1 - betas[1] ** t)


# What a case undoes: the factor of the rate and of eps before step t, and of the step
# after it.
RATES = {
    "correction": lambda betas, t: first(betas, t) / second(betas, t),
    "inside": first,
    "second_correction": second,
}
EPS = {"eps": second, "eps_late": lambda betas, t: second(betas, max(t - 1, 1))}
STEPS_MADE = {
    "inside": lambda betas, t, step: 1 / first(betas, t),
    "norm": lambda betas, t, step: (
        LR * 0.2 * math.sqrt(step.numel()) / torch.linalg.norm(step)
    ),
}


def follow(case, grads, params0):
    """Return the parameters after every step."""
    param = torch.nn.Parameter(torch.tensor(params0))
    module, _, name = case["where"].partition(":")
    undo, kwargs = case["undo"], case["library_kwargs"]
    if module == "special":
        optimizer = SPECIAL[name](param, **kwargs)
    else:
        optimizer = getattr(importlib.import_module(module), name)([param], **kwargs)
    if hasattr(optimizer, "train"):  # schedule-free: the iterate of the gradients
        optimizer.train()
    betas, eps = kwargs.get("betas"), case["kwargs"].get("eps")
    trajectory = []
    for t, grad in enumerate(grads, 1):
        before = param.detach().clone()
        for word in undo:
            group = optimizer.param_groups[0]
            if word in EPS:
                group["eps"] = eps * EPS[word](betas, t)
            if word in RATES:
                group["lr"] = LR * RATES[word](betas, t)
                if hasattr(optimizer, "base_lrs"):  # AdaBound's bounds do not follow
                    optimizer.base_lrs = [group["lr"]]
        param.grad = torch.tensor(grad)
        optimizer.step()
        for word in STEPS_MADE.keys() & undo:
            with torch.no_grad():
                step = param - before
                param.copy_(before + STEPS_MADE[word](betas, t, step) * step)
        trajectory.append(param.detach().numpy().copy())
    return np.stack(trajectory)


def library(case):
    """Return the name and the version of what the case compares with."""
    module, _, name = case["where"].partition(":")
    package = name if module == "special" else module.partition(".")[0]
    if package in MODULES:
        repository = MODULES[package]
        return f"{repository} {REPOSITORIES[repository][0][:12]}"
    package = DISTRIBUTIONS.get(package, package)
    return f"{package} {importlib.metadata.version(package).split('+')[0]}"


def main(folder):
    torch.set_default_dtype(torch.float64)
    torch.compiler.set_stance("force_eager")
    warnings.simplefilter("ignore")
    get_repositories(Path(folder))
    stand_in()
    leaves = make_leaves()
    arrays, cases = {}, {}
    for name, case in CASES.items():
        with all_in_float64() if case["wide"] else contextlib.nullcontext():
            arrays[f"params/{name}"] = follow(case, *leaves[case["leaf"]])
        told = ("optimizer", "kwargs", "leaf", "library_kwargs", "rtol", "reason")
        cases[name] = {key: case[key] for key in told} | {"library": library(case)}
    for leaf, (grads, params0) in leaves.items():
        arrays[f"grads/{leaf}"], arrays[f"params0/{leaf}"] = grads, params0
    np.savez_compressed(
        Path(__file__).with_name("family.npz"), cases=json.dumps(cases), **arrays
    )


if __name__ == "__main__":
    main(sys.argv[1])
