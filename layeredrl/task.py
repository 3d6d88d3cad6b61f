"""Task of an agent: spaces, known functions and special dimensions of its environments."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from layeredrl import action_spaces
from layeredrl.checks import require_count, require_dims, require_flat
from layeredrl.observation_offset import AtOffset, ObservationOffset

TransitionFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Function of (state (..., S), context (..., C), action (..., A), next_state (..., S)) to (...)."""

DynamicsFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Function of (state (..., S), context (..., C), action (..., A)) to the next state (..., S)."""

GOAL_KEY = "desired_goal"


_FLAT = ("angle", "unseen", "absolute")


@dataclass(frozen=True)
class StateDims:
    """Dimensions of the state with a special representation in the inputs or predictions of the dynamics' networks.

    Policies, critics, values and learned rewards see all dimensions as they are.
    """

    angle: tuple[int, ...] = ()
    """Angles in radians: networks see their sine and cosine, and predict their change."""
    unseen: tuple[int, ...] = ()
    """Dimensions that networks do not see, because nothing depends on them, such as how far a robot has walked."""
    absolute: tuple[int, ...] = ()
    """Dimensions whose next value is predicted instead of the change."""
    alike: tuple[tuple[int, ...], ...] = ()
    """Groups of dimensions that measure the same quantity from the same origin, such as the x positions of a hand and
    of an object: networks see and predict those of a group on one scale (but not the waves of `frequencies`), so
    that an object that has hardly moved yet is not magnified."""

    def __post_init__(self) -> None:
        groups = tuple(self.alike) if isinstance(self.alike, Iterable) else None
        if groups is None or not all(isinstance(group, Iterable) for group in groups):
            raise TypeError(f"alike_dims is {self.alike!r}, expected groups of integers")
        object.__setattr__(self, "alike", tuple(require_dims("alike_dims", group) for group in groups))
        for name in _FLAT:
            object.__setattr__(self, name, require_dims(f"{name}_dims", getattr(self, name)))
        both = sorted(set(self.angle) & set(self.unseen))
        if both:
            raise ValueError(f"angle_dims and unseen_dims both hold {both}, expected dimensions of one of the two")
        mixed = sorted(set(self.angle + self.unseen) & set(sum(self.alike, ())))
        if mixed:
            raise ValueError(f"alike_dims holds {mixed}, expected dimensions that are neither angles nor unseen")
        for group in self.alike:
            if 0 < len(set(group) & set(self.absolute)) < len(set(group)):
                raise ValueError(f"alike_dims holds {group}, of which absolute_dims has some, expected all or none")

    def check(self, width: int, goal: slice | None = None) -> None:
        """Raise unless all are distinct dimensions of vectors of this width, outside of the goal."""
        for name, dims in (*((name, getattr(self, name)) for name in _FLAT), ("alike", sum(self.alike, ()))):
            require_dims(f"{name}_dims", dims, width)
            if goal is not None and any(goal.start <= dim < goal.stop for dim in dims):
                raise ValueError(f"{name}_dims is {dims}, but {goal.start} to {goal.stop - 1} are the goal's")

    def among(self, kept: Sequence[int]) -> "StateDims":
        """Return these dimensions with the numbers that they have in a state of only the `kept` dimensions."""
        place = {dim: i for i, dim in enumerate(kept)}

        def kept_of(dims: Sequence[int]) -> tuple[int, ...]:
            return tuple(place[dim] for dim in dims if dim in place)

        groups = tuple(group for group in map(kept_of, self.alike) if len(group) > 1)
        return StateDims(kept_of(self.angle), kept_of(self.unseen), kept_of(self.absolute), groups)


@dataclass(frozen=True, eq=False)  # arrays have no single truth value
class TaskSpec:
    """Spaces of an environment and its known functions; unknown ones are learned.

    Observations that are a Dict of Boxes are flattened into one vector, keys in the space's own order.
    """

    observation_space: spaces.Box | spaces.Dict
    """Observation space of a single environment."""
    action_space: spaces.Space[Any]
    """Action space of a single environment in agents' units: a Box is [-1, 1]."""
    n_envs: int = 1
    """Number of parallel instances."""
    reward: TransitionFunction | None = None
    """Known reward of a transition, for actions in the environment's own units."""
    termination: TransitionFunction | None = None
    """Known termination of a transition, a bool or a probability, for actions in the environment's own units."""
    action_low: NDArray[np.number[Any]] | None = None
    """Lower bounds of actions in the environment's own units, (A,); None if these equal agents' units. With integer
    bounds, actions in these units are whole numbers."""
    action_high: NDArray[np.number[Any]] | None = None
    """Upper bounds of actions in the environment's own units, (A,)."""
    dynamics: DynamicsFunction | None = None
    """Known next state, for actions in the environment's own units; for an `Oracle`."""
    dims: StateDims = StateDims()
    """Dimensions of the flat observation with a special representation in the networks."""
    names: tuple[str, ...] = ()
    """Names of the dimensions of the flat observation; empty if the task gives none."""
    offset: ObservationOffset | None = field(default=None, compare=False, repr=False)
    """Offset of the flat observation; None if float32 holds the environment's numbers. Known functions still see the
    environment's own observations."""

    def __post_init__(self) -> None:
        check_observation_space(self.observation_space)
        goal = self.slices.get(GOAL_KEY)
        self.dims.check(self.observation_dim, goal)
        if len(self.names) not in (0, self.observation_dim):
            raise ValueError(f"names has {len(self.names)} names, expected {self.observation_dim} or none")
        if self.offset is None:
            object.__setattr__(self, "offset", self._possible_offset())
        if self.offset is not None:
            for name in ("reward", "termination", "dynamics"):
                known = getattr(self, name)
                if known is not None and not isinstance(known, AtOffset | _AtEnd):
                    shifted = AtOffset(known, self.offset, goal or slice(0, 0), name == "dynamics")
                    object.__setattr__(self, name, shifted)
        if self.n_envs < 1:
            raise ValueError(f"n_envs is {self.n_envs}, expected at least 1")

    @classmethod
    def from_env(cls, env: gym.Env[Any, Any], n_envs: int = 1) -> "TaskSpec":
        """Read the task from a single environment.

        The attributes `reward_function`, `termination_function` and `dynamics_function` of `env.unwrapped`, where they
        exist, are the known reward, termination and dynamics; `angle_dims`, `unseen_dims`, `absolute_dims` and
        `alike_dims` are its `StateDims`.

        Args:
            env: An environment whose action space is in its own units.
            n_envs: Number of instances that the agent will act in.

        Raises:
            ValueError: A space is not supported, or an attribute does not fit the environment.
        """
        unwrapped = env.unwrapped
        spec = cls(
            observation_space=cast(spaces.Box | spaces.Dict, env.observation_space),
            action_space=env.action_space,
            n_envs=n_envs,
            reward=_known_function(unwrapped, "reward", "state, context, action, next_state"),
            termination=_known_function(unwrapped, "termination", "state, context, action, next_state"),
            dynamics=_known_function(unwrapped, "dynamics", "state, context, action"),
            dims=StateDims(*(getattr(unwrapped, f"{name}_dims", ()) for name in (*_FLAT, "alike"))),
        )
        action_space = env.action_space
        if not isinstance(action_space, spaces.Box):
            return spec
        check_action_box(action_space)
        unit = action_spaces.unit_box(action_space.shape)
        return replace(spec, action_space=unit, action_low=action_space.low, action_high=action_space.high)

    @property
    def own_action_space(self) -> spaces.Space[Any]:
        """Action space of one environment in its own units."""
        if self.action_low is None or self.action_high is None:
            return self.action_space
        dtype: Any = self.action_low.dtype
        return spaces.Box(np.asarray(self.action_low), np.asarray(self.action_high), dtype=dtype)

    def coarse(self, action_space: spaces.Space[Any], duration: int, *, known: bool = True) -> "TaskSpec":
        """Return the task of a higher level, each of whose actions lasts some environment steps.

        A known reward becomes `duration` times that of the state at the end, for an action of zeros; a known
        termination is that of the state at the end. Both are approximations that suit rewards of the reached
        state.

        Args:
            action_space: Action space of that level.
            duration: Environment steps of an action.
            known: If True, keep known reward and termination; otherwise they are learned.
        """
        require_count("duration", duration)
        discrete = action_spaces.is_discrete(self.action_space)
        nothing = action_spaces.width(self.action_space), torch.int64 if discrete else torch.float32

        reward, termination = (self.reward, self.termination) if known else (None, None)
        return replace(
            self,
            action_space=action_space,
            action_low=None,
            action_high=None,
            reward=None if reward is None else _AtEnd(reward, duration, nothing),
            termination=None if termination is None else _AtEnd(termination, 1, nothing),
            dynamics=None,
        )

    @property
    def slices(self) -> dict[str, slice]:
        """Slice of each part of the observation in the flat vector; a Box is the part "observation"."""
        space = self.observation_space
        parts = space.spaces if isinstance(space, spaces.Dict) else {"observation": space}
        result, start = {}, 0
        for key, part in parts.items():
            stop = start + spaces.flatdim(part)
            result[key] = slice(start, stop)
            start = stop
        return result

    @property
    def observation_dim(self) -> int:
        """Width of a flat observation."""
        return spaces.flatdim(self.observation_space)

    def _possible_offset(self) -> ObservationOffset | None:
        space, slices = self.observation_space, self.slices
        parts = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
        dtypes = np.concatenate([np.full(spaces.flatdim(part), part.dtype) for part in parts])
        wide = np.array([not np.can_cast(dtype, np.float32) for dtype in dtypes])
        if not wide.any():
            return None
        pairs = []
        if GOAL_KEY in slices and "achieved_goal" in slices:
            ranges = (range(slices[key].start, slices[key].stop) for key in ("achieved_goal", GOAL_KEY))
            pairs = list(zip(*ranges, strict=False))
        return ObservationOffset(wide, [*self.dims.alike, *pairs])

    def flatten(self, observation: Any) -> NDArray[np.float32]:
        """Return the observations of all environments as one array (n_envs, observation_dim).

        Args:
            observation: Observation of a vector environment: an array, or a dict of arrays, the environment first.
        """
        space = self.observation_space
        parts = [observation[k] for k in space.spaces] if isinstance(space, spaces.Dict) else [observation]
        # Copies: environments may write their next observations into the same memory.
        dtype = np.float32 if self.offset is None else np.float64
        rows = [np.array(part, dtype).reshape(len(part), -1) for part in parts]
        flat: NDArray[Any] = rows[0] if len(rows) == 1 else np.concatenate(rows, axis=1)
        return flat if self.offset is None else self.offset.subtract(flat)

    def to_env_units(self, action: Tensor) -> Tensor:
        """Convert actions in [-1, 1] (..., A) to the environment's own units, inside of its bounds."""
        key = (action.device, action.dtype)
        if key not in self._units:
            self._units[key] = _Units.of(self.action_low, self.action_high, action)
        units = self._units[key]
        return action if units is None else units(action)

    @cached_property
    def _units(self) -> "dict[tuple[torch.device, torch.dtype], _Units | None]":
        """Units of the environment's actions by device and dtype; None if nothing changes."""
        return {}


@dataclass(frozen=True)
class _Units:
    """`action_spaces.Rescaling` for tensors of one device and dtype."""

    middle: Tensor
    half_range: Tensor
    bounds: tuple[Tensor, Tensor] | None
    """Lower and upper bounds, (A,); None if rounding does not leave them."""
    whole: bool
    """If True, actions are whole numbers."""

    @classmethod
    def of(cls, low: NDArray[Any] | None, high: NDArray[Any] | None, like: Tensor) -> "_Units | None":
        """Return the units for these bounds (A,); None if they are -1 and 1."""
        if low is None or high is None:
            return None
        whole = low.dtype.kind != "f"
        if not whole and (low == -1).all() and (high == 1).all():
            return None
        if whole:
            low, high = low.astype(np.float64), high.astype(np.float64)
        with torch.inference_mode(False):  # made in planning, used later with gradients
            # Halves first: a difference of enormous bounds is infinite.
            most = torch.finfo(like.dtype).max
            middle, half_range = (
                torch.as_tensor(x.astype(np.float64).clip(-most, most)).to(like.dtype)
                for x in (low / 2 + high / 2, high / 2 - low / 2)
            )
            bounds = _inside(torch.as_tensor(low), torch.as_tensor(high), like.dtype)
            # Rounding is monotonic, so that the two ends decide for all actions.
            leaves = bool(((middle - half_range < bounds[0]) | (middle + half_range > bounds[1])).any())
            bounds = (bounds[0].to(like.device), bounds[1].to(like.device))
            return cls(middle.to(like.device), half_range.to(like.device), bounds if leaves or whole else None, whole)

    def __call__(self, action: Tensor) -> Tensor:
        scaled = torch.addcmul(self.middle, action, self.half_range)
        if self.whole:
            scaled = scaled.round()
        return scaled if self.bounds is None else scaled.clamp(*self.bounds)


def _inside(low: Tensor, high: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return bounds (A,) in another dtype, rounded to the inside where there is a number between them."""
    near = low.to(dtype), high.to(dtype)
    if dtype not in (torch.float32, torch.float64):  # the others are of reduced precision anyway
        return near
    outside = near[0] < low, near[1] > high
    inner = [
        torch.where(out, x.nextafter(torch.tensor(end, dtype=dtype)), x)
        for out, x, end in zip(outside, near, (torch.inf, -torch.inf), strict=True)
    ]
    empty = inner[0] > inner[1]
    return torch.where(empty, near[0], inner[0]), torch.where(empty, near[1], inner[1])


@dataclass(frozen=True)
class _AtEnd:
    """A task's function of a long transition: its value at the end, for an action of zeros, times a factor."""

    function: TransitionFunction
    factor: int
    nothing: tuple[int, torch.dtype]
    """Width and type of an action of zeros."""

    def __call__(self, state: Tensor, context: Tensor, action: Tensor, after: Tensor) -> Tensor:
        width, dtype = self.nothing
        nothing = torch.zeros((), dtype=dtype, device=state.device).expand(*state.shape[:-1], width)
        result = self.function(state, context, nothing, after)
        return result if self.factor == 1 else self.factor * result


def _known_function(env: gym.Env[Any, Any], name: str, arguments: str) -> Any:
    """Return a known function of an environment, or None; a wrong signature raises here, not after the first fit."""
    function = getattr(env, f"{name}_function", None)
    if function is None:
        return None
    if not callable(function):
        raise ValueError(f"the environment's {name}_function is {function!r}, expected a function")
    try:
        signature = inspect.signature(function)
    except ValueError:  # not every callable has one
        return function
    try:
        signature.bind(*arguments.split(", "))
    except TypeError:
        raise ValueError(
            f"the environment's {name}_function takes {signature}, expected ({arguments}); it may be a staticmethod"
        ) from None
    return function


def check_observation_space(space: object) -> None:
    """Raise unless `space` is a flat Box, or a Dict of flat Boxes; a Box in a Dict may be a single number."""
    parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
    hint = "; the wrapper gymnasium.wrappers:FlattenObservation makes it flat"
    for key, part in parts.items():
        name = f"observation space {key!r}" if key else "observation space"
        if not isinstance(part, spaces.Box):
            raise ValueError(f"{name} is {part}, expected a flat Box or a Dict of flat Boxes{hint}")
        if part.shape != () or not key:
            require_flat(name, part, hint)


def check_action_box(space: spaces.Box) -> None:
    """Raise unless the bounds of an action space are finite and its shape is flat."""
    require_flat("action space", space)
    if not space.shape[0]:
        raise ValueError("action space has shape (0,), expected at least one action")
    if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise ValueError(f"action space is {space}, expected finite bounds: agents' actions are scaled to them")
