"""The lab, which is agents, environments and experiments: where it is, for those parts of the library that need it.

The library imports nothing from the lab when it is imported. A checkout, or a folder of one's own that `layeredrl new`
has written, has the lab at its top level; a wheel carries a copy inside of the package.
"""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

FOLDERS = ("agents", "envs", "experiments")
"""Packages of the lab."""
LEFT_OUT = ("experiments/benchmarks/", "experiments/results/")
"""Folders that measure this project itself; no copy of the lab has them."""
PACKAGE = Path(__file__).resolve().parent
"""Folder of the library."""


def holds_lab(folder: Path) -> bool:
    """Return True if a folder holds the lab; others may have folders of the same names."""
    return (folder / "experiments" / "run" / "__init__.py").is_file()


def find_lab() -> Path:
    """Return the folder of the lab that belongs to this library: the copy in the package, or else the checkout.

    Raises:
        ModuleNotFoundError: There is no lab.
    """
    for folder in (PACKAGE / "_lab", PACKAGE.parent):
        if holds_lab(folder):
            return folder
    raise ModuleNotFoundError(
        f"{', '.join(FOLDERS)} are not importable, expected the folder of a checkout on the path: run from there, "
        "or set PYTHONPATH to it"
    )


def make_importable() -> None:
    """Make `agents`, `envs` and `experiments` importable; those of the current folder or of the path come first.

    Raises:
        ModuleNotFoundError: There is no lab, or another package has the name of one of its own.
    """
    if any(holds_lab(Path(place)) for place in sys.path):
        return
    lab = find_lab()
    for name in FOLDERS:
        other = importlib.util.find_spec(name)
        if other is not None and other.origin is not None:
            raise ModuleNotFoundError(
                f"{name} is {other.origin}, expected that of {lab}: put {lab} first on the path, or rename yours"
            )
    sys.path.append(str(lab))


def files(root: Path) -> Iterator[str]:
    """Paths of the files that a copy of the lab in `root` consists of, relative to `root`."""
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            name = path.relative_to(root).as_posix()
            if path.is_file() and "__pycache__" not in path.parts and not name.startswith(LEFT_OUT):
                yield name
