"""Predictions of an ensemble for one step: moments, samples and densities of next states."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from layeredrl import checks
from layeredrl.models.density import mixture_log_prob, mixture_mean
from layeredrl.models.members import Members
from layeredrl.models.outputs import NetOutput
from layeredrl.models.rollout import choose_mode


class OneStepPredictions(Members):
    """The members' predictions for one step, batch first, as the public interface of models has them."""

    def predict(
        self,
        state: Tensor,
        context: Tensor,
        action: Tensor,
        std: Tensor | None = None,
        *,
        loss_mode: bool = False,
    ) -> tuple[Tensor, ...]:
        rows, lead = self.spaces.rows(self.dtype, state=state, context=context, action=action)
        out = self.predicted(rows, loss_mode=loss_mode)
        shape = (*lead, self.n_models, self.n_modes)
        mean = out.mean + self.base(rows[0]).unsqueeze(-2)
        mean = mean.transpose(0, 1).reshape(*shape, self.state_dim)
        predicted_std = out.std.transpose(0, 1).reshape(*shape, self.state_dim)
        if std is not None:
            predicted_std = self.spaces.std(std, predicted_std.shape, self.dtype).clone()
        weights = out.weights.transpose(0, 1).reshape(shape)
        return mean, weights, predicted_std, out.term_prob.mean(0).reshape(lead)

    def sample(
        self, state: Tensor, context: Tensor, action: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw one next state per row from the whole mixture: a member, one of its modes, a Gaussian.

        Args:
            state: Shape (B, S).
            context: Shape (B, C).
            action: Shape (B, A).
            generator: Source of randomness; None for torch's global one.

        Returns:
            Next states (B, S).
        """
        rows, lead = self.spaces.rows(self.dtype, state=state, context=context, action=action)
        out = self.predicted(rows, loss_mode=False)
        n_rows = out.mean.shape[1]
        device, dtype = out.mean.device, out.mean.dtype
        member = torch.randint(self.n_models, (n_rows,), generator=generator, device=device)
        row = torch.arange(n_rows, device=device)
        mean, std, weights = (x[member, row] for x in out[:3])
        uniform = torch.rand((n_rows,), generator=generator, device=device, dtype=dtype)
        normal = torch.randn((n_rows, self.state_dim), generator=generator, device=device, dtype=dtype)
        mean, std = (choose_mode(x, weights, uniform) for x in (mean, std))
        return (self.base(rows[0]) + mean + std * normal).reshape(*lead, self.state_dim)

    def get_log_prob(
        self,
        state: Tensor,
        context: Tensor,
        action: Tensor,
        next_state: Tensor,
        std: Tensor | None = None,
        loss_mode: bool = False,
        transform: nn.Module | None = None,
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Log of the density averaged over members.

        Args:
            state: Shape (..., S).
            context: Shape (..., C).
            action: Shape (..., A).
            next_state: Shape (..., S).
            std: Replaces the predicted standard deviations; broadcastable to (..., S).
            loss_mode: Always use the learned networks, not the symmetry-breaking start.
            transform: Maps predicted means and observed target, in the predicted space (the change in state with
                `predict_delta`), before the density is taken. Only meaningful with a given `std`.

        Returns:
            Log density (...), termination probability averaged over members (...), and a dict with `means`
            (..., M, S), each member's mean in the predicted space, after `transform`.
        """
        rows, lead = self.spaces.rows(self.dtype, state=state, context=context, action=action, next_state=next_state)
        out = self.predicted(rows[:3], loss_mode=loss_mode)
        log_prob, means = self._log_prob(rows, lead, out, std, transform)
        log_prob = torch.logsumexp(log_prob, 0) - math.log(self.n_models)
        info = {"means": means.transpose(0, 1).reshape(*lead, self.n_models, means.shape[-1])}
        return log_prob.reshape(lead), out.term_prob.mean(0).reshape(lead), info

    def get_member_log_prob(
        self,
        id: int,
        state: Tensor,
        context: Tensor,
        action: Tensor,
        next_state: Tensor,
        std: Tensor | None = None,
        loss_mode: bool = False,
        transform: nn.Module | None = None,
    ) -> tuple[Tensor, ...]:
        """Same as `get_log_prob`, with the same arguments, for the member `id` only.

        Returns:
            Log density (...), termination probability (...), and the mean of the member's mixture (..., S) in the
            predicted space, after `transform`.
        """
        checks.require_count("id", id, minimum=0)
        if id >= self.n_models:
            raise ValueError(f"id is {id}, expected a member in [0, {self.n_models})")
        rows, lead = self.spaces.rows(self.dtype, state=state, context=context, action=action, next_state=next_state)
        out = self.predicted(rows[:3], loss_mode=loss_mode, member=id)
        log_prob, means = self._log_prob(rows, lead, out, std, transform)
        return log_prob.reshape(lead), out.term_prob.reshape(lead), means.reshape(*lead, means.shape[-1])

    def _log_prob(
        self,
        rows: list[Tensor],
        lead: torch.Size,
        out: NetOutput,
        std: Tensor | None,
        transform: nn.Module | None,
    ) -> tuple[Tensor, Tensor]:
        """Log densities (m, R) and mixture means (m, R, S) of the members in `out`, in the predicted space."""
        target, mean, member_std = rows[3] - self.base(rows[0]), out.mean, out.std
        if transform is not None:
            if not callable(transform):
                raise TypeError(f"transform is {type(transform).__name__}, expected a torch.nn.Module")
            target, mean = transform(target), transform(mean)
        if std is not None:
            # A transform may change the width; the given standard deviation is in its output space.
            member_std = self.spaces.std(std, (*lead, target.shape[-1]), self.dtype)
            member_std = member_std.reshape(1, -1, 1, target.shape[-1])
        return mixture_log_prob(target, mean, member_std, out.weights), mixture_mean(mean, out.weights)
