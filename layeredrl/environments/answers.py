"""What environments return, checked; and what they did wrong, as a phrase."""

import contextlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from layeredrl.faults import Fault


class Failure(Exception):
    """What an environment did, as a phrase to follow its name."""

    def __init__(self, phrase: str, error: Exception | None = None) -> None:
        super().__init__(phrase)
        self.error = error
        self.message = phrase


class EnvironmentFault(Fault):
    """An environment failed."""

    def __init__(self, env_id: int, n_steps: int, message: str) -> None:
        super().__init__(message)
        self.env_id = env_id
        """Index of the environment."""
        self.n_steps = n_steps
        """Steps of the episode, the one that failed included; 0 where it failed before the first."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.env_id, self.n_steps, str(self))


def unpacked(name: str, answer: Any, n: int) -> Any:
    """What `reset` or `step` returned, if it is a tuple of n with an info at its end."""
    if type(answer) is not tuple or len(answer) != n or not isinstance(answer[-1], dict):
        raise Failure(f"returned {shown(answer)} from {name}, expected a tuple of {n}, the last a dict")
    return answer


def fitted(space: spaces.Space[Any], obs: Any, name: str = "observation") -> Any:
    """An observation of the space's structure, shapes and dtypes; raises if it is of another."""
    if type(space) is spaces.Box and type(obs) is np.ndarray and obs.shape == space.shape and obs.dtype == space.dtype:
        return obs
    if isinstance(space, spaces.Dict):
        if not isinstance(obs, Mapping) or obs.keys() != space.spaces.keys():
            raise Failure(f"returned the {name} {shown(obs)}, expected a dict with the keys {', '.join(space)}")
        return {key: fitted(sub, obs[key], f"{name}[{key!r}]") for key, sub in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        if not isinstance(obs, tuple | list) or len(obs) != len(space.spaces):
            raise Failure(f"returned the {name} {shown(obs)}, expected a tuple of {len(space.spaces)}")
        return tuple(fitted(sub, obs[k], f"{name}[{k}]") for k, sub in enumerate(space.spaces))
    if not isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiBinary | spaces.MultiDiscrete):
        if obs not in space:
            raise Failure(f"returned the {name} {shown(obs)}, expected an element of {space}")
        return obs
    try:
        array = np.asarray(obs)
    except Exception as error:  # rows of different lengths, or an object's own __array__
        raise Failure(f"returned the {name} {shown(obs)}, expected numbers") from error
    if array.shape != space.shape:
        raise Failure(f"returned the {name} {shown(obs)} of shape {array.shape}, expected {space.shape}")
    if not np.can_cast(array.dtype, space.dtype, "same_kind"):  # what gymnasium casts, and no more
        raise Failure(f"returned the {name} {shown(obs)} of dtype {array.dtype}, expected {space.dtype}")
    with np.errstate(over="ignore"):  # infinities are found later
        return array.astype(space.dtype, copy=False)


def all_finite(space: spaces.Space[Any], obs: Any) -> bool:
    """Whether there is no NaN and no infinity in one or several observations."""
    if isinstance(space, spaces.Dict):
        return all(all_finite(sub, obs[key]) for key, sub in space.spaces.items())
    if isinstance(space, spaces.Tuple):
        return all(all_finite(sub, part) for sub, part in zip(space.spaces, obs, strict=True))
    return not isinstance(space, spaces.Box) or obs.dtype.kind != "f" or np.count_nonzero(np.isfinite(obs)) == obs.size


def require_finite(space: spaces.Space[Any], obs: Any, name: str = "observation") -> None:
    """Raise, with the first place, if there is a NaN or an infinity in an observation."""
    if isinstance(space, spaces.Dict):
        for key, sub in space.spaces.items():
            require_finite(sub, obs[key], f"{name}[{key!r}]")
    elif isinstance(space, spaces.Tuple):
        for k, sub in enumerate(space.spaces):
            require_finite(sub, obs[k], f"{name}[{k}]")
    elif not all_finite(space, obs):
        first = tuple(np.argwhere(~np.isfinite(obs))[0].tolist())
        where = f", at {list(first)} {obs[first]}" if obs.size > 8 else ""
        raise Failure(f"returned the {name} {shown(obs)}{where}, expected finite numbers")


def number(reward: Any) -> float:
    """A reward, if it is one finite number."""
    value = math.nan
    if not isinstance(reward, str | bytes) and np.ndim(reward) == 0 and not np.iscomplexobj(reward):
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            value = float(reward)
    if not math.isfinite(value):
        raise Failure(f"returned the reward {shown(reward)}, expected a finite number")
    return value


def flag(name: str, value: Any) -> bool:
    """A flag, if it is a boolean of Python's or numpy's, or 0 or 1."""
    if type(value) is bool:
        return value
    plain = value.item() if isinstance(value, np.generic | np.ndarray) and value.ndim == 0 else value
    if not isinstance(plain, int) or plain not in (0, 1):
        raise Failure(f"returned {name} = {shown(value)}, expected True or False")
    return bool(plain)


def shown(value: Any) -> str:
    """A value on one short line."""
    with np.printoptions(threshold=8, edgeitems=3, precision=4):
        text = " ".join((value if isinstance(value, str) else str(value)).split())
    return text if len(text) <= 300 else text[:300] + "..."
