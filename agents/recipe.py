"""The base of recipes: settings of an agent, with named presets."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from layeredrl.trainer import TrainerConfig


class Recipe:
    """A frozen dataclass of settings whose `build(task, device, *, seed)` wires an agent.

    Attributes:
        presets: Overrides of the defaults by name of the preset: a value for each field that differs. A subclass
            inherits them, and its own defaults hold for all other fields.
        trainers: Length of training and the like, by name of the preset.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    trainers: ClassVar[Mapping[str, TrainerConfig]] = {}

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> Self:
        """Settings of a preset, with further overrides.

        Raises:
            ValueError: There is no preset of this name.
        """
        if name not in cls.presets:
            raise ValueError(f"preset is {name!r}, expected one of {', '.join(cls.presets)}")
        return cls(**{**cls.presets[name], **overrides})
