"""Check of shapes for dynamics functions: silent broadcasting is an error."""

from torch import Tensor


def check_shapes(state: Tensor, action: Tensor, state_dim: int, action_dim: int) -> None:
    """Raise unless state and action are (..., state_dim) and (..., action_dim) with the same leading dims."""
    if state.shape[-1:] != (state_dim,) or action.shape != (*state.shape[:-1], action_dim):
        raise ValueError(
            f"state and action have shapes {tuple(state.shape)} and {tuple(action.shape)}; "
            f"they should be (..., {state_dim}) and (..., {action_dim}) with the same leading dims"
        )
