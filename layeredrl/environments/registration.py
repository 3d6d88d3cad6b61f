"""Packages whose environments are registered when they are first needed, and the extras that install them."""

import importlib
import importlib.util
import re
import sys
from dataclasses import dataclass

import gymnasium as gym

from layeredrl.environments import headless


@dataclass(frozen=True)
class _Provider:
    """A package that registers environments on import."""

    prefixes: tuple[str, ...]
    """Beginnings of its ids."""
    modules: tuple[str, ...]
    """Modules that have to exist; the last one registers the environments."""
    extra: str
    """The extra of layeredrl that installs it."""
    renders_on_import: bool = False
    """If True, the package chooses how to draw when it is imported."""


_PROVIDERS = (
    _Provider(("dm_control/",), ("dm_control", "shimmy"), "dmc", renders_on_import=True),
    _Provider(
        ("Fetch", "HandReach", "HandManipulate", "PointMaze_", "AntMaze_", "AdroitHand", "FrankaKitchen"),
        ("mujoco", "gymnasium_robotics"),
        "robotics",
    ),
)

_EXTRAS = {"mujoco": "mujoco", "box2d": "box2d", "classic_control": "box2d", "classic-control": "box2d"}
"""Extras of layeredrl by those of gymnasium that they contain; that of Box2D brings the pygame of classic control."""


def install(extra: str) -> str:
    """Return the command that installs an extra."""
    return f"pip install 'layeredrl[{extra}]'"


def register_needed(env_id: str) -> bool:
    """Import the package that has an unknown id; return True if this registered new environments.

    Raises:
        DependencyNotInstalled: The package is not installed.
    """
    name = env_id.rpartition(":")[2]
    provider = next((provider for provider in _PROVIDERS if name.startswith(provider.prefixes)), None)
    if provider is None or provider.modules[-1] in sys.modules:
        return False
    if not all(importlib.util.find_spec(module) for module in provider.modules):
        raise gym.error.DependencyNotInstalled(f"it needs the extra {provider.extra}: {install(provider.extra)}")
    if provider.renders_on_import:
        headless.choose_backend()
    module = importlib.import_module(provider.modules[-1])
    gym.register_envs(module)
    return True


def with_own_extra(message: str) -> str:
    """Return a message of gymnasium about a missing package with the extra of layeredrl that installs it."""
    wanted = re.search(r"gymnasium\[([\w-]+)\]|No module named '(mujoco)", message)
    extra = _EXTRAS.get(next(filter(None, wanted.groups()))) if wanted else None
    return message if extra is None else f"it needs the extra {extra}: {install(extra)}"
