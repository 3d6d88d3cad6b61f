"""A lab of one's own: agents, environments and experiments in a folder, to change and to add to."""

import re
import shutil
from pathlib import Path

from layeredrl import __version__
from layeredrl.lab import files, find_lab

PROJECT = """\
[project]
name = "{name}"
version = "0.1.0"
requires-python = ">=3.11"
dependencies = ["layeredrl=={version}"]

[tool.setuptools]
packages = [] # the code runs from this folder: `pip install .` installs what it needs
"""

README = """\
# {name}

Agents, environments and experiments, copied from LayeredRL {version}. In this folder, the command `layeredrl` uses
them.

    layeredrl train pets --preset demo
    layeredrl evaluate runs/pets-ContinuousCartPole-v0-0
    layeredrl report runs
    layeredrl list

| folder | |
|---|---|
| `agents/` | one file per agent: a dataclass of settings, with a `build` that wires parts of the library |
| `envs/` | environments, registered with gymnasium in `envs/__init__.py` |
| `experiments/` | commands; studies in `experiments/studies` |

An agent of your own: write `agents/mine.py` with a class `Mine`, and train it with `layeredrl train agents.mine:Mine`.
For a short name, add it to `AGENTS` in `experiments/run/config.py`. `python -m experiments.train` is the same as
`layeredrl train`.
"""

IGNORED = "__pycache__/\n/runs/\n/wandb/\n/report*\n"


def write_lab(folder: Path) -> int:
    """Copy the lab into a new or empty folder, with a pyproject.toml and a README; return the number of files.

    Raises:
        ValueError: The folder holds something already, or is a file.
        OSError: The folder cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists, expected a new or an empty folder")
    root = find_lab()
    names = list(files(root))
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, folder / name)
    project = re.sub(r"[^a-z0-9]+", "-", folder.resolve().name.lower()).strip("-") or "lab"
    own = {"pyproject.toml": PROJECT, "README.md": README}
    for name, text in own.items():
        (folder / name).write_text(text.format(name=project, version=__version__))
    (folder / ".gitignore").write_text(IGNORED)
    return len(names) + len(own) + 1
