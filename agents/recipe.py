"""The base of recipes: settings of an agent, with named presets or chosen for a task."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

from layeredrl.environments import TaskFacts
from layeredrl.trainer import TrainerConfig

T = TypeVar("T")


class Choice(NamedTuple):
    """A setting that suits a task."""

    name: str
    """Name as on the command line, such as `planner.icem.horizon`; `trainer.` begins those of the trainer."""
    value: Any
    reason: str
    """Reason, in a few words."""


class Recipe:
    """A frozen dataclass of settings whose `build(task, device, *, seed)` wires an agent.

    Attributes:
        presets: Overrides of the defaults by name of the preset: a value for each field that differs. A subclass
            inherits them, and its own defaults hold for all other fields.
        trainers: Length of training and the like, by name of the preset.
        environment: An environment that the agent works in.
        environments: Environments of those presets that are made for another one.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    trainers: ClassVar[Mapping[str, TrainerConfig]] = {}
    environment: ClassVar[str] = "ContinuousCartPole-v0"
    environments: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> Self:
        """Settings of a preset, with further overrides.

        Raises:
            ValueError: There is no preset of this name.
        """
        if name not in cls.presets:
            raise ValueError(f"preset is {name!r}, expected one of {', '.join(cls.presets)}")
        return cls(**{**cls.presets[name], **overrides})

    @classmethod
    def suited(cls, facts: TaskFacts) -> Sequence[Choice]:
        """Settings that suit a task; an agent without any has presets alone.

        Args:
            facts: Facts of the task.
        """
        del facts
        return ()


def with_choices(settings: T, choices: Sequence[Choice]) -> T:
    """Settings with some replaced, in nested dataclasses too.

    Args:
        settings: A frozen dataclass.
        choices: Names relative to it, with dots between those of nested ones.
    """
    for name, value, _ in choices:
        settings = _replaced(settings, name.split("."), value)
    return settings


def _replaced(settings: Any, names: Sequence[str], value: Any) -> Any:
    first, *rest = names
    return replace(settings, **{first: _replaced(getattr(settings, first), rest, value) if rest else value})
