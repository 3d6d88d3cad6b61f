"""Choice of a planner by name: settings for command lines and config files, from one registry."""

from collections.abc import Mapping
from dataclasses import field, make_dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from gymnasium import spaces

from layeredrl.checks import require_choice
from layeredrl.planners.cem import CEM, CEMConfig
from layeredrl.planners.icem import ICEM, ICEMConfig
from layeredrl.planners.mppi import MPPI, MPPIConfig
from layeredrl.planners.planner import Planner
from layeredrl.planners.random_shooting import RandomShooting, RandomShootingConfig

Registry = Mapping[str, tuple[type[Planner], type[Any]]]
"""Planner class and class of its settings by kind; `planner(action_space, settings)` makes a planner."""

PLANNERS: Registry = {
    "icem": (ICEM, ICEMConfig),
    "cem": (CEM, CEMConfig),
    "mppi": (MPPI, MPPIConfig),
    "random_shooting": (RandomShooting, RandomShootingConfig),
}
"""All planners, the default first. One line here adds a planner to command lines and to config.json."""


class _PlannerConfig:
    """Choice of a planner by `kind`, and one field of settings for each kind of the registry.

    Attributes:
        kind: Planner to use; the settings of the other kinds are ignored.
    """

    planners: ClassVar[Registry]
    kind: str

    if TYPE_CHECKING:  # the fields come from a registry, which type checkers do not follow

        def __init__(self, kind: str = "icem", **settings: Any) -> None: ...

        def __getattr__(self, kind: str) -> Any: ...

    def __post_init__(self) -> None:
        require_choice("kind", self.kind, tuple(self.planners))

    @property
    def settings(self) -> Any:
        """Settings of the chosen planner."""
        return getattr(self, self.kind)

    def build(self, action_space: spaces.Space[object]) -> Planner:
        """Make the chosen planner.

        Args:
            action_space: Box of shape (A,) with finite bounds, Discrete or MultiDiscrete; some planners accept fewer.
        """
        planner: Any = self.planners[self.kind][0]
        made: Planner = planner(action_space, self.settings)
        return made


def make_planner_config(planners: Registry) -> type[_PlannerConfig]:
    """Frozen dataclass with the field `kind`, the first one by default, and a field of settings for each kind."""
    kinds: Any = Literal[tuple(planners)]  # choices on command lines and in config files
    fields: list[tuple[str, Any, Any]] = [("kind", kinds, next(iter(planners)))]
    fields += [(kind, config, field(default_factory=config)) for kind, (_, config) in planners.items()]
    namespace = {"planners": planners, "__module__": __name__, "__doc__": _PlannerConfig.__doc__}
    return make_dataclass("PlannerConfig", fields, bases=(_PlannerConfig,), namespace=namespace, frozen=True)


if TYPE_CHECKING:
    PlannerConfig = _PlannerConfig
else:
    PlannerConfig = make_planner_config(PLANNERS)
