"""Spaces of a model, the networks made for them, and the checks of its arguments."""

import inspect
from collections.abc import Callable, Sequence

import torch
from gymnasium.spaces import Box, Discrete
from tianshou.data import Batch
from torch import Tensor, nn

from layeredrl import action_spaces, checks
from layeredrl.task import StateDims


class ModelSpaces:
    """State, context and action space of a model, and the checks that depend on them alone.

    Args:
        state_space: Box of shape (S,).
        context_space: Box of shape (C,).
        action_space: Box of shape (A,), or Discrete, whose actions are tensors (..., 1) of integers.
    """

    def __init__(self, state_space: Box, context_space: Box, action_space: Box | Discrete) -> None:
        checks.require_flat_box("state_space", state_space)
        checks.require_flat_box("context_space", context_space)
        self._all = (state_space, context_space, action_space)
        self.state_dim, self.context_dim = state_space.shape[0], context_space.shape[0]
        if not isinstance(action_space, Box | Discrete):
            raise TypeError(f"action_space is {type(action_space).__name__}, expected a gymnasium Box or Discrete")
        if isinstance(action_space, Discrete) and action_space.start != 0:
            raise ValueError(f"action_space is {action_space}, expected one that starts at 0")
        self.action_dim = action_spaces.width(action_space)
        self.n_choices = int(action_space.n) if isinstance(action_space, Discrete) else None

    def make_networks(self, partial_net: Callable[..., nn.Module], n_models: int, n_modes: int) -> list[nn.Module]:
        """Call `partial_net` for each member, with the spaces and `n_modes` or, if it takes only these, the spaces."""
        checks.require_count("n_models", n_models)
        checks.require_count("n_modes", n_modes)
        return [self._make_network(partial_net, n_modes) for _ in range(n_models)]

    def _make_network(self, partial_net: Callable[..., nn.Module], n_modes: int) -> nn.Module:
        if not callable(partial_net):
            raise TypeError(f"partial_net is {type(partial_net).__name__}, expected a function that returns a network")
        signature = inspect.signature(partial_net)
        arguments = next((a for a in ((*self._all, n_modes), self._all) if _takes(signature, a)), None)
        if arguments is None:
            raise TypeError(
                f"partial_net takes {signature}, expected (state_space, context_space, action_space, n_modes)"
            )
        net = partial_net(*arguments)
        if not isinstance(net, nn.Module):
            raise TypeError(f"partial_net returned {type(net).__name__}, expected a torch.nn.Module")
        return net

    def dims(
        self, predict_delta: bool, absolute_dims: Sequence[int], alike_dims: Sequence[Sequence[int]]
    ) -> tuple[Tensor, tuple[tuple[int, ...], ...]]:
        """Check the state dimensions of an ensemble's settings.

        Returns:
            1.0 for dimensions predicted as a change and 0.0 for those predicted as the next value, (S,); and the groups
            of dimensions with a common scale.
        """
        absolute = checks.require_dims("absolute_dims", absolute_dims, self.state_dim)
        dims = StateDims(absolute=absolute if predict_delta else (), alike=tuple(map(tuple, alike_dims)))
        dims.check(self.state_dim)
        is_delta = torch.full((self.state_dim,), float(predict_delta))
        is_delta[list(absolute)] = 0.0
        return is_delta, dims.alike

    def random_inputs(self, n_rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """Random state, context and action to test a network; the global random state does not change."""
        generator = torch.Generator().manual_seed(0)
        state = torch.randn(n_rows, self.state_dim, generator=generator)
        context = torch.randn(n_rows, self.context_dim, generator=generator)
        if self.n_choices is not None:
            return state, context, torch.randint(self.n_choices, (n_rows, 1), generator=generator)
        return state, context, torch.randn(n_rows, self.action_dim, generator=generator)

    def check(self, name: str, value: Tensor, dtype: torch.dtype, *, n_dims: int | None = None) -> None:
        """Raise unless `value` has the width and type of what `name` says: a state, a context, or actions."""
        if name in ("act", "action", "actions"):
            checks.require_tensor(name, value, self.action_dim, n_dims=n_dims)
            if self.n_choices is not None:
                checks.require_integers(name, value, self.n_choices)
                return
        else:
            width = self.context_dim if name == "context" else self.state_dim
            checks.require_tensor(name, value, width, n_dims=n_dims)
        checks.require_dtype(name, value, dtype)

    def check_plan(self, initial_state: Tensor, context: Tensor, actions: Tensor, dtype: torch.dtype) -> None:
        """Raise unless states (B, S), contexts (B, C) and actions (B, H, A) are valid arguments of a rollout."""
        self.check("initial_state", initial_state, dtype, n_dims=2)
        self.check("context", context, dtype, n_dims=2)
        self.check("actions", actions, dtype, n_dims=3)
        checks.require_same_lead({"context": context}, initial_state.shape[:-1])
        b = len(initial_state)
        if actions.shape[0] != b or actions.shape[1] == 0:
            raise ValueError(f"actions has shape {tuple(actions.shape)}, expected ({b}, H, {self.action_dim})")

    def std(self, std: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return a given standard deviation expanded to `shape`; raise if it is no tensor or does not broadcast."""
        if not isinstance(std, Tensor):
            raise TypeError(f"std is {type(std).__name__}, expected a torch.Tensor")
        checks.require_dtype("std", std, dtype)
        try:
            return std.expand(*shape)
        except RuntimeError:
            raise ValueError(f"std has shape {tuple(std.shape)}, expected it to broadcast to {tuple(shape)}") from None

    def rows(self, dtype: torch.dtype, **tensors: Tensor) -> tuple[list[Tensor], torch.Size]:
        """Check tensors of equal leading dimensions and flatten these dimensions.

        Args:
            dtype: Expected type of states, contexts and Box actions.
            **tensors: Tensors by the names of the public arguments; the first sets the leading dimensions.

        Returns:
            The tensors, each (R, width), and the leading dimensions.
        """
        for name, value in tensors.items():
            self.check(name, value, dtype)
        lead = next(iter(tensors.values())).shape[:-1]
        checks.require_same_lead(tensors, lead)
        n_rows = lead.numel()
        return [x.reshape(n_rows, x.shape[-1]) for x in tensors.values()], lead

    def training_rows(self, batch: Batch, dtype: torch.dtype, weighted: bool) -> dict[str, Tensor]:
        """Check a training batch and flatten its leading dimensions.

        Args:
            batch: Keys as in `ProbabilisticEnsemble.loss`.
            dtype: Expected type of states, contexts and Box actions.
            weighted: If True, the key `weight` is required.

        Returns:
            `state` (N, S), `context` (N, C), `act` (N, A), `state_next` (N, S), `terminated` (N), and, where they
            are given, `weight` (N) and `validity_mask` (N) of bools. Invalid rows hold zeros.
        """
        if not isinstance(batch, Batch):
            raise TypeError(f"batch is {type(batch).__name__}, expected a tianshou.data.Batch")
        flags = ["terminated"] + ["weight"] * weighted + ["validity_mask"] * ("validity_mask" in batch)
        keys = ["state", "context", "act", "state_next"]
        missing = [key for key in keys + flags if key not in batch]
        if missing:
            raise ValueError(f"the batch lacks {', '.join(missing)}; it has {', '.join(sorted(batch.keys()))}")
        flat, lead = self.rows(dtype, **{key: batch[key] for key in keys})
        rows = dict(zip(keys, flat, strict=True))
        if not len(flat[0]):
            raise ValueError("the batch of data is empty, expected at least one transition")
        for key in flags:
            value = batch[key]
            if not isinstance(value, Tensor):
                raise TypeError(f"{key} is {type(value).__name__}, expected a torch.Tensor")
            if value.shape not in (lead, (*lead, 1)):
                raise ValueError(f"{key} has shape {tuple(value.shape)}, expected {tuple(lead)}")
            rows[key] = value.reshape(-1)
        valid = rows.pop("validity_mask").bool() if "validity_mask" in rows else None
        checks.require_finite(rows, valid)
        if valid is None:
            return rows
        # Masked rows may hold anything, including NaN, and must not reach the networks.
        rows = {k: torch.where(valid.view(-1, *[1] * (x.ndim - 1)), x, torch.zeros_like(x)) for k, x in rows.items()}
        return {**rows, "validity_mask": valid}


def _takes(signature: inspect.Signature, arguments: tuple[object, ...]) -> bool:
    try:
        signature.bind(*arguments)
    except TypeError:
        return False
    return True


def counted_rows(rows: dict[str, Tensor]) -> Tensor | None:
    """Mask (N) of the rows of a training batch that statistics count: valid and of nonzero weight; None if all are."""
    valid, weight = rows.get("validity_mask"), rows.get("weight")
    if weight is None:
        return valid
    return weight != 0 if valid is None else valid & (weight != 0)


def deal(rows: dict[str, Tensor], n_members: int) -> dict[str, Tensor]:
    """Distribute N rows over members, (M, ceil(N / M), ...): row r goes to member r % M.

    Shares differ by at most one row; `validity_mask` is false for the places that stay empty.
    """
    n = len(rows["state"])
    missing = -n % n_members
    if missing:
        valid = rows.get("validity_mask", torch.ones(n, dtype=torch.bool, device=rows["state"].device))
        rows = {**rows, "validity_mask": valid}
        rows = {key: torch.cat([x, x.new_zeros(missing, *x.shape[1:])]) for key, x in rows.items()}
    share = (n + missing) // n_members
    return {key: x.view(share, n_members, *x.shape[1:]).transpose(0, 1) for key, x in rows.items()}
