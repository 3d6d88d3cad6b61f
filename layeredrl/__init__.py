"""LayeredRL: online model-based reinforcement learning with agents that are stacks of levels.

The top level plans with a learned world model; the levels below carry out what it asks for, be it a primitive
action or a skill that runs for many steps. Import what you need from the subpackages: `layeredrl.models` for
dynamics models, `layeredrl.planners` for optimisers of action sequences, `layeredrl.levels` and
`layeredrl.hierarchy` for putting an agent together. `layeredrl.load` gives a trained agent as a `Policy`. This module
itself imports nothing heavy.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from layeredrl.policy import Policy, load

__version__ = "0.1.0"

__all__ = ["Policy", "load"]


def __getattr__(name: str) -> object:
    """Import `load` and `Policy` when they are first used."""
    if name in __all__:
        from layeredrl import policy

        return getattr(policy, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
