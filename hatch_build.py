"""Puts the lab into the package when a wheel is built; an editable install uses the lab of the checkout."""

import runpy
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class LabHook(BuildHookInterface[Any]):
    """Copies the lab to `layeredrl/_lab`."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the files of the lab to those of the wheel.

        Args:
            version: "standard", or "editable" for an editable install.
            build_data: `force_include` maps a file of the checkout to its place in the wheel.
        """
        if version == "standard":
            names = runpy.run_path(str(Path(self.root, "layeredrl", "lab.py")))["files"](Path(self.root))
            build_data["force_include"] |= {str(Path(self.root, name)): f"layeredrl/_lab/{name}" for name in names}
