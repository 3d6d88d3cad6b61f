"""Checks of the values that environments return, and their failures."""

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from layeredrl.faults import Fault
from layeredrl.observation_offset import LARGE

LARGEST = float(np.finfo(np.float32).max)
"""Largest finite number in float32, in which agents learn."""


class Failure(Exception):
    """Failure of an environment: a phrase that follows its name in a message."""

    def __init__(self, phrase: str, error: BaseException | None = None) -> None:
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
        """Steps of the episode, including the one that failed; 0 if it failed before the first."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.env_id, self.n_steps, str(self))


def unpacked(name: str, answer: Any, n: int) -> Any:
    """Return the answer of `reset` or `step` if it is a tuple of n that ends with an info."""
    if type(answer) is not tuple or len(answer) != n or not isinstance(answer[-1], dict):
        raise Failure(f"returned {shown(answer)} from {name}, expected a tuple of {n}, the last a dict")
    return answer


def fitted(space: spaces.Space[Any], obs: Any, name: str = "observation") -> Any:
    """Return an observation in the structure, shapes and dtypes of the space; raise if it has others."""
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
    if not np.can_cast(array.dtype, space.dtype, "same_kind"):  # casts that gymnasium makes, and no others
        raise Failure(f"returned the {name} {shown(obs)} of dtype {array.dtype}, expected {space.dtype}")
    with np.errstate(over="ignore"):  # infinities are checked later
        result = array.astype(space.dtype, copy=False)
    if array.dtype == np.float64 and result.dtype == np.float32:
        lost = (np.abs(array) > LARGE) & np.isfinite(result) & (array != result)
        if lost.any() and name not in ROUNDED:
            ROUNDED.add(name)
            index = tuple(np.argwhere(lost)[0].tolist())
            warnings.warn(
                f"{name}{list(index)} is {array[index]:g}, which its space of float32 rounds to steps of "
                f"{np.spacing(np.abs(result[index])):g}; declare the space as float64 if smaller changes matter",
                RuntimeWarning,
                stacklevel=2,
            )
    return result


ROUNDED: set[str] = set()
"""Observations of which a warning has said that they are rounded."""


def all_finite(space: spaces.Space[Any], obs: Any) -> bool:
    """Return True if all numbers of one or several observations are finite in float32."""
    if isinstance(space, spaces.Dict):
        return all(all_finite(sub, obs[key]) for key, sub in space.spaces.items())
    if isinstance(space, spaces.Tuple):
        return all(all_finite(sub, part) for sub, part in zip(space.spaces, obs, strict=True))
    if not isinstance(space, spaces.Box) or obs.dtype.kind != "f":
        return True
    return bool(np.count_nonzero(_finite(obs)) == obs.size)


def _finite(obs: NDArray[Any]) -> NDArray[np.bool_]:
    """Return where numbers are finite in float32."""
    finite: NDArray[np.bool_] = np.isfinite(obs) if obs.dtype.itemsize <= 4 else np.abs(obs) <= LARGEST
    return finite


def require_finite(space: spaces.Space[Any], obs: Any, name: str = "observation") -> None:
    """Raise, naming the first index, if a number of an observation is not finite in float32."""
    if isinstance(space, spaces.Dict):
        for key, sub in space.spaces.items():
            require_finite(sub, obs[key], f"{name}[{key!r}]")
    elif isinstance(space, spaces.Tuple):
        for k, sub in enumerate(space.spaces):
            require_finite(sub, obs[k], f"{name}[{k}]")
    elif not all_finite(space, obs):
        first = tuple(np.argwhere(~_finite(obs))[0].tolist())
        where = f", at {list(first)} {obs[first]}" if obs.size > 8 else ""
        raise Failure(f"returned the {name} {shown(obs)}{where}, expected finite numbers in float32")


@contextlib.contextmanager
def as_faults(call: str) -> Iterator[None]:
    """Turn any error of a call to environments that step all at once into a `Fault`, so that a run saves and ends."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit and panics of code in Rust are no `Exception`
        raise Fault(f"{call} of the environments raised {type(error).__name__}: {shown(str(error))}") from error


def number(reward: Any) -> float:
    """Return a reward if it is one number that is finite in float32."""
    value = math.nan
    if not isinstance(reward, str | bytes) and np.ndim(reward) == 0 and not np.iscomplexobj(reward):
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            value = float(reward)
    if not abs(value) <= LARGEST:
        raise Failure(f"returned the reward {shown(reward)}, expected a finite number in float32")
    return value


def flag(name: str, value: Any) -> bool:
    """Return a flag if it is a boolean of Python or numpy, or 0 or 1."""
    if type(value) is bool:
        return value
    plain = value.item() if isinstance(value, np.generic | np.ndarray) and value.ndim == 0 else value
    if not isinstance(plain, int) or plain not in (0, 1):
        raise Failure(f"returned {name} = {shown(value)}, expected True or False")
    return bool(plain)


def shown(value: Any) -> str:
    """Return a value as one line of at most 303 characters."""
    with np.printoptions(threshold=8, edgeitems=3, precision=4):
        text = " ".join((value if isinstance(value, str) else str(value)).split())
    return text if len(text) <= 300 else text[:300] + "..."
