"""The lab, which is agents, environments and experiments: where it is, for those parts of the library that need it.

The library imports nothing from the lab when it is imported. A checkout, or a folder of one's own that `layeredrl new`
has written, has the lab at its top level; a wheel carries a copy inside of the package.
"""

import importlib.util
import sys
from pathlib import Path

FOLDERS = ("agents", "envs", "experiments")
"""Packages of the lab."""


def make_importable() -> None:
    """Make `agents`, `envs` and `experiments` importable; those of the current folder or of the path come first.

    Raises:
        ModuleNotFoundError: There is no lab.
    """
    if importlib.util.find_spec("experiments") and importlib.util.find_spec("experiments.run"):
        return
    copy = Path(__file__).parent / "_lab"
    if not copy.is_dir():
        raise ModuleNotFoundError(
            f"{', '.join(FOLDERS)} are not importable, expected the folder of a checkout on the path: run from there, "
            "or set PYTHONPATH to it"
        )
    sys.path.append(str(copy))
