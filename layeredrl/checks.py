"""Checks of arguments: each error names the argument, what it was and what it should be."""

from collections.abc import Collection, Mapping
from numbers import Integral, Real

import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor


def require_count(name: str, value: int, minimum: int = 1) -> None:
    """Raise unless `value` is an integer of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}), expected an integer")
    if value < minimum:
        raise ValueError(f"{name} is {value}, expected at least {minimum}")


def require_number(name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    """Raise unless `value` lies in [low, high], or in (low, high] with `open_low`."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}), expected a number")
    if not (low < value <= high if open_low else low <= value <= high):
        raise ValueError(f"{name} is {value}, expected a number in {'(' if open_low else '['}{low}, {high}]")


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
    if len(space.shape) != 1:
        raise ValueError(f"{name} has shape {space.shape}, expected one dimension, such as (4,)")


def action_width(space: object) -> int:
    """Width of an action tensor: that of a flat Box, 1 for Discrete; raises for other spaces."""
    if isinstance(space, Discrete):
        if space.start != 0:
            raise ValueError(f"action_space is {space}, expected one that starts at 0")
        return 1
    if not isinstance(space, Box):
        raise TypeError(f"action_space is {type(space).__name__}, expected a gymnasium Box or Discrete")
    require_flat_box("action_space", space)
    return int(space.shape[0])


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
    # On a GPU a look at the values would stall; there torch's own assertion has to do.
    if value.device.type == "cpu" and value.numel() and not 0 <= int(value.min()) <= int(value.max()) < n:
        raise ValueError(f"{name} holds {int(value.min())} to {int(value.max())}, expected integers in [0, {n})")


def require_finite(tensors: Mapping[str, Tensor], valid: Tensor | None = None) -> None:
    """Raise, naming the first row, if a tensor (N, ...) is not finite; rows that `valid` (N) rules out pass."""
    floats = {name: x.reshape(len(x), -1) for name, x in tensors.items() if x.is_floating_point()}
    bad = {
        name: ~torch.isfinite(x).all(1) if valid is None else ~torch.isfinite(x).all(1) & valid
        for name, x in floats.items()
    }
    if not bool(torch.stack([rows.any() for rows in bad.values()]).any()):  # one look, because on a GPU each one stalls
        return
    name = next(name for name, rows in bad.items() if bool(rows.any()))
    row = int(bad[name].nonzero()[0, 0])
    raise ValueError(f"{name}[{row}] is {tensors[name][row].tolist()}, expected finite numbers")
