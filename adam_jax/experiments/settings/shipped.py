"""`adam-jax configs`: the configs that come with the package, by name."""

import re
from collections.abc import Callable
from pathlib import Path

from adam_jax.experiments.settings.config import require_known
from adam_jax.experiments.settings.options import ConfigsOptions


def list_configs() -> dict[str, Path]:
    """Give the files of the configs, by name."""
    here = Path(__file__).parents[1]
    installed, checkout = here / "configs", here.parents[1] / "configs"
    folder = installed if installed.is_dir() else checkout
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def prepare(options: ConfigsOptions) -> Callable[[], None]:
    """Read a config, or what all are about."""
    configs = list_configs()
    if options.name is not None:
        expected = "one of those that adam-jax configs lists"
        require_known("config", options.name, configs, expected)
        text = configs[options.name].read_text("utf-8")
        return lambda: print(text, end="")
    width = max(map(len, configs), default=0)
    lines = [f"{name:{width}}  {describe(path)}" for name, path in configs.items()]
    return lambda: print(*lines, sep="\n")


def describe(path: Path) -> str:
    """Give the command that a config is for, and the first sentence of its comment."""
    head = path.read_text("utf-8").split("\n\n")[0]
    command = re.findall(r"^#   adam-jax (\w+)", head, re.MULTILINE)
    about = re.sub(r"\n# ?", " ", head.split("\n#\n")[0].removeprefix("# "))
    sentence = re.split(r"(?<! al)\. ", about)[0].removesuffix(".")
    return f"{''.join(command):8} {sentence}"
