"""Termination function of tasks that never terminate."""

import torch
from torch import Tensor


def termination_function(state: Tensor, context: Tensor | None, action: Tensor, next_state: Tensor) -> Tensor:
    """Never terminate.

    Args:
        state: Not used.
        context: Not used.
        action: Not used.
        next_state: Shape: (..., S).

    Returns:
        False. Shape: (...).
    """
    return next_state.new_zeros(next_state.shape[:-1], dtype=torch.bool)
