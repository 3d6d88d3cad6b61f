"""Decisions of the levels of a hierarchy, and the commands made from them."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tianshou.data import Batch
from torch import Tensor

from layeredrl.levels import Decision, Level

_INTEGERS = {torch.int8, torch.int16, torch.int32, torch.int64}


def command_of(above: Any, rows: Any, elapsed: Any = None) -> Batch:
    """Command of a level to the one below, at `elapsed` environment steps (n,) after the level's decision, or now.

    Args:
        above: Carry of the level: a `LevelCarry`, or a `TensorLevelCarry` on a device.
        rows: The environments, as an index.
        elapsed: Environment steps, in the type of the carry; None for those so far.
    """
    now, remaining = above.elapsed[rows], above.remaining[rows]
    if elapsed is not None:
        now, remaining = elapsed, remaining + now - elapsed
    return Batch(action=above.action[rows], obs=above.obs[rows], elapsed=now, remaining=remaining)


def require_valid(level: Level, decision: Decision, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Return the actions of a decision in the carry's type; raise for another shape, kind or duration.

    Args:
        level: The level that decided.
        decision: Its decision in n environments.
        dtype: Type of its actions.
        shape: Their shape, (n, A).
    """
    if (decision.duration < 1).any():
        raise ValueError(
            f"{type(level).__name__} decided for a duration of {decision.duration}, expected at least 1 everywhere"
        )
    given = decision.action.dtype
    is_kind = given.is_floating_point if dtype.is_floating_point else given in _INTEGERS
    if decision.action.shape != shape or not is_kind:
        raise ValueError(
            f"{type(level).__name__} decided for actions of shape {tuple(decision.action.shape)} and type "
            f"{decision.action.dtype}, expected {shape} and {dtype}"
        )
    return decision.action.to(dtype)


def filled(values: NDArray[np.int64], device: torch.device) -> Tensor:
    """Return integers (n,) on a device, without a copy where all are the same."""
    if len(values) and (values == values[0]).all():
        return torch.full(values.shape, int(values[0]), dtype=torch.int64, device=device)
    return torch.as_tensor(values, device=device)
