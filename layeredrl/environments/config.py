"""Recipe of an environment: everything that decides what an instance is."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from layeredrl.checks import require_count


@dataclass(frozen=True)
class EnvConfig:
    """Id, arguments, action repeat and wrappers of an environment, from which instances are made anywhere.

    It is pickled into the processes of environments, so that nothing in it is an open resource.
    """

    id: str
    """Any id registered with gymnasium; package.module:Id imports the package first. Ids of DeepMind Control
    (dm_control/cheetah-run-v0) and gymnasium-robotics (FetchReach-v4) are registered when they are first needed."""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the environment, or of `gymnasium.make`, such as `max_episode_steps`."""
    action_repeat: int = 1
    """Number of frames, which are steps of the environment as it is registered, that each action is repeated for."""
    wrappers: tuple[str, ...] = ()
    """Wrappers as package.module:Class, each called with the environment alone; the first one is the innermost."""

    def __post_init__(self) -> None:
        if not isinstance(self.id, str):
            raise TypeError(f"the id of the environment is {self.id!r}, expected a string")
        if not isinstance(self.kwargs, Mapping) or not all(isinstance(key, str) for key in self.kwargs):
            raise TypeError(f"env_kwargs is {self.kwargs!r}, expected a mapping from names to values")
        require_count("action_repeat", self.action_repeat)
        for wrapper in self.wrappers:
            module, _, name = wrapper.partition(":")
            if not module or not name:
                raise ValueError(f"wrappers has {wrapper!r}, expected package.module:Class")

    @classmethod
    def of(cls, env: "str | EnvConfig", **kwargs: Any) -> "EnvConfig":
        """Return the recipe of an id, or a recipe itself, with further arguments of the environment."""
        config = cls(env) if isinstance(env, str) else env
        return replace(config, kwargs={**config.kwargs, **kwargs}) if kwargs else config

    @property
    def is_changed(self) -> bool:
        """True if single instances differ from the registered environment, beyond its arguments."""
        return self.action_repeat > 1 or bool(self.wrappers)
