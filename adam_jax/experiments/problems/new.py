"""`adam-jax new`: the file of a problem of one's own, to begin with."""

from collections.abc import Callable
from pathlib import Path

from adam_jax.experiments.settings.options import NewOptions

TEMPLATE = Path(__file__).with_name("template.py")
PLACE = "THIS_FILE"  # in the template: its own name


def prepare(options: NewOptions) -> Callable[[], None]:
    """See whether the file can be written."""
    path = options.file
    if path.suffix != ".py":
        raise ValueError(f"file is {str(path)!r}, but must end in .py")
    if path.exists():
        raise ValueError(f"{path} is there already: give another name")
    if not path.parent.is_dir():
        raise ValueError(f"{path} would be in no folder that exists")
    return lambda: write(path)


def write(path: Path) -> None:
    """Write the template, and tell how to go on."""
    text = TEMPLATE.read_text("utf-8").replace(PLACE, str(path))
    with path.open("x", encoding="utf-8") as file:
        file.write(text)
    print(f"{path}: train it as it is by `adam-jax train --problem {path}`")
