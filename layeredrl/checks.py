"""Checks of arguments: each error names the argument, its value and the expected one."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, MultiDiscrete
from numpy.typing import NDArray
from torch import Tensor


def require_count(name: str, value: int, minimum: int = 1) -> None:
    """Raise unless `value` is an integer of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}), expected an integer")
    if value < minimum:
        raise ValueError(f"{name} is {value}, expected at least {minimum}")


def require_number(name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    """Raise unless `value` lies in [low, high], or in (low, high] with `open_low`; it must be finite in any case."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}), expected a number")
    if not (low < value <= high if open_low else low <= value <= high) or not math.isfinite(value):
        left, right = "(" if open_low else "[", ")" if high == math.inf else "]"
        raise ValueError(f"{name} is {value}, expected a number in {left}{low}, {high}{right}")


def require_reward_scale(reward_scale: float | None) -> None:
    """Raise unless a factor of rewards is a positive number, or None."""
    if reward_scale is not None:
        require_number("reward_scale", reward_scale, 0, math.inf, open_low=True)


def are_probabilities(values: Tensor) -> bool:
    """Return True if no value is outside [0, 1] by more than rounding; NaN is not."""
    return not bool(((values < -1e-5) | (values > 1 + 1e-5)).any())


def require_pair(name: str, value: object) -> None:
    """Raise unless `value` is a sequence of two elements."""
    if not isinstance(value, Sequence) or len(value) != 2:
        raise ValueError(f"{name} is {value!r}, expected two numbers")


def require_finite_number(name: str, value: float) -> None:
    """Raise unless `value` is a finite number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}), expected a number")
    if not math.isfinite(value):
        raise ValueError(f"{name} is {value}, expected a finite number")


def require_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Raise unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(choices)}")


def require_counts(settings: object, **minimums: int) -> None:
    """Raise unless the attributes of these names are integers of at least these values."""
    for name, minimum in minimums.items():
        require_count(name, getattr(settings, name), minimum)


def require_flat_box(name: str, space: object) -> None:
    """Raise unless `space` is a one-dimensional Box."""
    if not isinstance(space, Box):
        raise TypeError(f"{name} is {type(space).__name__}, expected a gymnasium Box")
    require_flat(name, space)


def require_flat(name: str, space: Box | MultiDiscrete, hint: str = "") -> None:
    """Raise unless `space` is one-dimensional; the message ends in `hint`."""
    if len(space.shape) != 1:
        raise ValueError(f"{name} has shape {space.shape}, expected one dimension, such as (4,){hint}")


def require_dims(name: str, dims: object, width: int | None = None) -> tuple[int, ...]:
    """Return `dims` as integers; raise unless they are different dimensions of a vector of this width.

    Without `width`, which may not be known yet, they only have to be integers.
    """
    values = tuple(dims) if isinstance(dims, Iterable) else (None,)
    if any(isinstance(dim, bool) or not isinstance(dim, Integral) for dim in values):
        raise TypeError(f"{name} is {dims!r}, expected integers")
    result = tuple(int(dim) for dim in values)
    if width is not None and (len(set(result)) < len(result) or not all(0 <= dim < width for dim in result)):
        raise ValueError(f"{name} is {result}, expected different numbers from 0 to {width - 1}")
    return result


def require_tensor(name: str, value: object, width: int, *, n_dims: int | None = None) -> Tensor:
    """Return `value`, a tensor whose last dimension has `width`; raise if it is anything else.

    With `n_dims` the number of dimensions is checked too.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is {type(value).__name__}, expected a torch.Tensor")
    wanted = "(..., " if n_dims is None else "(" + ", ".join("BHT"[: n_dims - 1]) + ", "
    if value.ndim == 0 or value.shape[-1] != width or (n_dims is not None and value.ndim != n_dims):
        raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {wanted}{width})")
    return value


def require_same_lead(tensors: Mapping[str, Tensor], lead: torch.Size) -> None:
    """Raise unless all tensors have the leading dimensions `lead`."""
    for name, tensor in tensors.items():
        if tensor.shape[:-1] != lead:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, expected the leading dimensions {tuple(lead)} of the state"
            )


def require_dtype(name: str, value: Tensor, dtype: torch.dtype) -> None:
    """Raise unless `value` has `dtype`."""
    if value.dtype != dtype:
        raise TypeError(f"{name} has dtype {value.dtype}, expected {dtype}")


def require_integers(name: str, value: Tensor, n: int) -> None:
    """Raise unless `value` has an integer dtype, as choices among `n` have."""
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name} has dtype {value.dtype}, expected integers in [0, {n})")
    # Reading values from a GPU would make it wait; torch's own assertion has to do there.
    if value.device.type == "cpu" and value.numel() and not 0 <= int(value.min()) <= int(value.max()) < n:
        raise ValueError(f"{name} holds {int(value.min())} to {int(value.max())}, expected integers in [0, {n})")


def require_finite(tensors: Mapping[str, Tensor], valid: Tensor | None = None) -> None:
    """Raise, naming the first row, if a tensor (N, ...) is not finite; rows where `valid` (N) is false may be.

    Tensors on a GPU are not read, because that would make it wait: a step whose loss is not finite is skipped.
    """
    if any(x.device.type != "cpu" for x in tensors.values()):
        return
    floats = {name: x.reshape(len(x), -1) for name, x in tensors.items() if x.is_floating_point()}
    # A sum of finite numbers is finite unless it overflows: one quick test of all tensors before a close one of each.
    if bool(torch.stack([x.sum() for x in floats.values()]).isfinite().all()):
        return
    bad = {name: ~x.isfinite().all(1) if valid is None else ~x.isfinite().all(1) & valid for name, x in floats.items()}
    if not any(bool(rows.any()) for rows in bad.values()):
        return
    name = next(name for name, rows in bad.items() if bool(rows.any()))
    row = int(bad[name].nonzero()[0, 0])
    raise ValueError(f"{name}[{row}] is {tensors[name][row].tolist()}, expected finite numbers")


def require_finite_rows(name: str, values: NDArray[Any], env_ids: NDArray[np.int64]) -> None:
    """Raise, naming the environment, if a row of the array `values` (n, ...) is not finite."""
    with np.errstate(over="ignore", invalid="ignore"):  # as in `require_finite`, the sum first
        if np.isfinite(values.sum()):
            return
    finite = np.isfinite(values.reshape(len(values), -1)).all(1)
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        raise ValueError(f"{name} of environment {env_ids[row]} is {values[row].tolist()}, expected finite numbers")
