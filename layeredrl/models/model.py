"""The interface of dynamics models."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, Self, cast

import torch
from tianshou.data import Batch
from torch import Tensor, nn

from layeredrl.checks import require_count
from layeredrl.models.optimizer import descend

MOST_UNREAD = 1000
"""Steps on a GPU after which those that were skipped are read from it."""


class Model(ABC, nn.Module):
    """A dynamics model: predicts the next state and whether the episode terminates.

    B is a number of rows (environments times candidates, say), M of ensemble members, P of particles per member, K of
    mixture modes, H a horizon; S, C and A are the widths of state, context and action. The context is what stays
    constant during an episode. Public tensors are batch first; integer actions have shape (..., 1).

    Attributes:
        optimizer: Optimiser of the model's parameters, for `learn`; None if the model does not learn by itself.
    """

    n_total_env_steps: Tensor

    def __init__(
        self,
        n_models: int = 1,
        n_particles_per_model: int = 1,
        device: torch.device = torch.device("cpu"),  # noqa: B008  the default that the Models API asks for
    ) -> None:
        """Set the attributes that all models have.

        Args:
            n_models: Number of ensemble members M.
            n_particles_per_model: Particles P that a rollout follows per member.
            device: Device of the parameters and inputs.
        """
        nn.Module.__init__(self)
        require_count("n_models", n_models)
        require_count("n_particles_per_model", n_particles_per_model)
        self.n_models = n_models
        self.n_particles_per_model = n_particles_per_model
        self.device = torch.device(device)
        self.optimizer: torch.optim.Optimizer | None = None
        self._unread: list[tuple[Tensor, Tensor]] = []  # losses of the last steps, and whether they were taken
        self.register_buffer("n_total_env_steps", torch.zeros((), dtype=torch.int64))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Convert or move the model, as `to` and its like do, and what belongs to it."""
        cast(Any, super())._apply(fn, recurse)  # untyped in torch
        device = self.n_total_env_steps.device
        if device.type != self.device.type or self.device.index not in (None, device.index):
            self.device = device
        if self.optimizer is not None and self.optimizer.state:  # loading a state moves it to the parameters
            self.optimizer.load_state_dict(self.optimizer.state_dict())
        return self

    @abstractmethod
    def get_log_prob(
        self, state: Tensor, context: Tensor, action: Tensor, next_state: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Log density of an observed next state.

        Args:
            state: Shape (..., S).
            context: Shape (..., C).
            action: Shape (..., A).
            next_state: Shape (..., S).

        Returns:
            Log density (...), termination probability (...), and a dict with additional information.
        """

    @abstractmethod
    def get_parameters(self) -> Iterable[Tensor]:
        """Parameters that an optimiser should train."""

    def get_prob(
        self, state: Tensor, context: Tensor, action: Tensor, next_state: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Density of an observed next state: the exponential of `get_log_prob`, which is more accurate.

        Returns:
            Density (...) in float64, clamped to that type's finite range; the rest as from `get_log_prob`.
        """
        log_prob, term_prob, info = self.get_log_prob(state, context, action, next_state)
        prob = log_prob.double().exp().clamp(max=torch.finfo(torch.float64).max)
        return prob, term_prob, info

    def learn(self, batch_lst: list[Batch]) -> Tensor:
        """Take one optimiser step for each of the batches.

        A step whose loss or gradient is not finite is skipped, with a warning. A GPU would wait for it: warnings of
        steps on one come together, after `MOST_UNREAD` steps.

        Args:
            batch_lst: Batches as for `loss`; at least one.

        Returns:
            The last batch's loss before its step, a detached scalar.
        """
        if not isinstance(batch_lst, list | tuple) or not batch_lst:
            raise ValueError(f"batch_lst is {type(batch_lst).__name__} or empty, expected a list of at least one Batch")
        first = len(self._unread)
        for batch in batch_lst:
            loss = self.loss(batch)
            self._unread.append((loss.detach(), self.take_step(loss)))
        last = self._unread[-1][0]
        if self.device.type == "cpu" or len(self._unread) >= MOST_UNREAD:
            losses, taken = (torch.stack(x).tolist() for x in zip(*self._unread, strict=True))
            self._unread = []
            for i in (i for i, was_taken in enumerate(taken) if not was_taken):
                ago = f"batch {i - first}" if i >= first else f"a batch, {len(taken) - i} steps ago"
                warnings.warn(
                    f"skipped the step of {ago}: its loss is {losses[i]}, or its gradient is not finite", stacklevel=2
                )
        return last

    def take_step(self, loss: Tensor) -> Tensor:
        """Take one optimiser step down the gradient of `loss`, a scalar, unless loss or gradient is not finite.

        On a GPU a fused optimiser checks this itself, because reading the result would make the GPU wait.

        Returns:
            True if the step was taken, a bool scalar on the loss's device.
        """
        if self.optimizer is None:
            raise RuntimeError("learning needs an optimizer: construct the model with create_optimizer=True")
        return descend(loss, self.optimizer)

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """Training loss of a batch of transitions, a scalar.

        Args:
            batch: Keys `state` (N, S), `context` (N, C), `act` (N, A), `state_next` (N, S), `terminated` (N).
        """

    @abstractmethod
    def predict(self, state: Tensor, context: Tensor, action: Tensor, std: Tensor | None = None) -> tuple[Tensor, ...]:
        """Parameters of the predicted distribution over next states, without sampling.

        Args:
            state: Shape (B, S).
            context: Shape (B, C).
            action: Shape (B, A).
            std: Replaces the predicted standard deviations; broadcastable to (B, M, K, S).

        Returns:
            Means (B, M, K, S), mode weights (B, M, K), standard deviations (B, M, K, S), and the termination
            probability averaged over members (B).
        """

    @abstractmethod
    def rollout(
        self,
        initial_state: Tensor,
        context: Tensor,
        actions: Tensor,
        deterministic: bool = False,
        *,
        generator: torch.Generator | None = None,
        statistics: bool = True,
        n_alike: int = 1,
    ) -> Batch:
        """Follow a sequence of actions, open loop.

        Args:
            initial_state: Shape (B, S).
            context: Shape (B, C), held for the whole rollout.
            actions: Shape (B, H, A).
            deterministic: Follow the mean instead of sampling.
            generator: Source of randomness; None for torch's global one.
            statistics: If True, return `state_mean` and other moments too, which planning does not need.
            n_alike: Number of consecutive rows of the batch that draw the same noise, so that their other differences
                can be compared.

        Returns:
            Batch with `state` (B, M, P, H+1, S), `state_mean` (B, M, H+1, S), `term_prob` (B, M, P, H), and further
            keys that depend on the model.
        """

    @abstractmethod
    def sample(
        self, state: Tensor, context: Tensor, action: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw one next state (B, S) for each row of state (B, S), context (B, C), action (B, A)."""

    def set_n_total_env_steps(self, n_total_env_steps: int) -> None:
        """Set the progress of training, in environment steps summed over all instances."""
        require_count("n_total_env_steps", n_total_env_steps, minimum=0)
        self.n_total_env_steps.fill_(n_total_env_steps)
