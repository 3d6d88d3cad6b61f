"""Predictions and losses of the members of an ensemble: tensors with the member axis first, (M, R, ...)."""

from collections.abc import Callable, Generator, Sequence
from typing import Any, Self, cast

import torch
from torch import Tensor

from layeredrl.models.density import beta_log_prob, mixture_log_prob, termination_loss
from layeredrl.models.model import Model
from layeredrl.models.normalization import Moments, RunningScale, in_chunks, merged
from layeredrl.models.outputs import NetOutput, StepOutput
from layeredrl.models.rollout import StepModel
from layeredrl.models.spaces import ModelSpaces
from layeredrl.models.stacked.network import StackedNetwork
from layeredrl.models.symmetry import SymmetryBreakingStart


class Members(Model):
    """The members' networks, the units of their outputs, and the symmetry-breaking start that precedes them.

    Args:
        spaces: Spaces of states, contexts and actions.
        network: The members' networks, stacked.
        scale: Running standard deviation of the targets, the unit of the networks' outputs; None for no scaling.
        start: The symmetry-breaking start, or None.
        is_delta: 1.0 for state dimensions predicted as a change, 0.0 for those predicted as the next value, (S,).
        beta_nll: Power of the predicted variance, in the networks' units, that weights each dimension in training.
        **settings: Arguments of `Model`.
    """

    is_delta: Tensor
    size: Tensor

    def __init__(
        self,
        spaces: ModelSpaces,
        network: StackedNetwork,
        scale: RunningScale | None,
        start: SymmetryBreakingStart | None,
        is_delta: Tensor,
        *,
        beta_nll: float = 0.0,
        **settings: Any,
    ) -> None:
        super().__init__(network.n_members, **settings)
        self.beta_nll = beta_nll
        self.spaces = spaces
        self.state_dim, self.n_modes = spaces.state_dim, network.n_modes
        self.network, self.scale, self.symmetry = network, scale, start
        self._all_delta = bool(is_delta.all())
        self.register_buffer("is_delta", is_delta, persistent=False)
        # Root mean square of the fitted states; infinite, so that no state is too far out, until then.
        self.register_buffer("size", torch.full_like(is_delta, torch.inf))
        self.to(self.device)
        cast(Any, self).register_load_state_dict_post_hook(_follow_start)  # untyped in torch

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.network.move_template(self.device)
        return self

    @property
    def dtype(self) -> torch.dtype:
        """Type of the parameters, and of the tensors that the model takes."""
        return self.is_delta.dtype

    def get_parameters(self) -> Generator[Tensor, None, None]:
        """Parameters of all members, each stacked in one tensor with the member axis first."""
        yield from self.network.parameters()

    def set_n_total_env_steps(self, n_total_env_steps: int) -> None:
        super().set_n_total_env_steps(n_total_env_steps)
        if self.symmetry is not None:
            self.symmetry.set_n_total_env_steps(n_total_env_steps)

    def targets(self, rows: dict[str, Tensor]) -> Tensor:
        """Prediction targets in the state's units: change in state or next state (..., S).

        Args:
            rows: `state` and `state_next`, (..., S) each.
        """
        return rows["state_next"] - self.base(rows["state"])

    def base(self, state: Tensor) -> Tensor:
        """Reference of a prediction: the state (..., S) in dimensions predicted as a change, zero in others."""
        return state if self._all_delta else state * self.is_delta

    @property
    def unit(self) -> Tensor:
        """Unit of the networks' outputs, (S,)."""
        return torch.ones_like(self.is_delta) if self.scale is None else self.scale.std

    def fit_statistics(self, rows: dict[str, Tensor]) -> None:
        """Set the statistics of inputs and targets from all the data of a fit.

        Args:
            rows: `state` (N, S), `context` (N, C), `act` (N, A) and `state_next` (N, S).
        """
        if self.network.needs_all_inputs:
            self.network.fit_inputs(rows["state"], rows["context"], rows["act"])
        rows = {key: rows[key] for key in ("state", "context", "act", "state_next")}
        self.set_moments(merged([self.moments(chunk) for chunk in in_chunks(rows)]))

    @torch.no_grad()
    def moments(self, rows: dict[str, Tensor]) -> dict[str, Moments]:
        """Moments of a part of the data, to be merged for `set_moments`; argument of `fit_statistics`."""
        result = {"targets": Moments.of(self.targets(rows)), "state": Moments.of(rows["state"])}
        inputs = self.network.input_moments(rows["state"], rows["context"], rows["act"])
        return result if inputs is None else {**result, "inputs": inputs}

    def set_moments(self, moments: dict[str, Moments]) -> None:
        """Set the statistics of inputs and targets to moments of all the data of a fit."""
        if "inputs" in moments:
            self.network.set_input_moments(moments["inputs"])
        self.size.copy_(moments["state"].mean_square.sqrt())
        if self.scale is not None:
            self.scale.fit(moments["targets"], moments["state"])

    def member_losses(self, rows: dict[str, Tensor]) -> Tensor:
        """Loss of each member on its own rows, (M,), without regularisation; in training mode with `beta_nll`.

        Args:
            rows: Members first: `state` (M, N, S), `context` (M, N, C), `act` (M, N, A), `state_next` (M, N, S),
                `terminated` (M, N), and optionally `weight` (M, N) and `validity_mask` (M, N).
        """
        valid, weight = rows.get("validity_mask"), rows.get("weight")
        target = self.targets(rows)
        out = self.network(rows["state"], rows["context"], rows["act"])
        terms = termination_loss(out.term_prob, rows["terminated"])
        if self.scale is not None:  # in the networks' units, of moderate size; the conversion adds a constant
            target, terms = target / self.scale.std, terms + self.scale.std.log().sum()
        if self.training and self.beta_nll > 0:
            terms = terms - beta_log_prob(target, out.mean.squeeze(-2), out.std.squeeze(-2), self.beta_nll)
        else:
            terms = terms - mixture_log_prob(target, *out[:3])
        if weight is not None:
            terms = terms * weight
        if valid is None:
            return terms.mean(1)
        return torch.where(valid, terms, 0.0).sum(1) / valid.sum(1).clamp(min=1)

    def regularization(self) -> Tensor:
        """Regularisation term of the networks, summed over members, a scalar."""
        term = self.network.regularization()
        return torch.zeros((), device=self.device) if term is None else term

    def predicted(self, rows: Sequence[Tensor], *, loss_mode: bool, member: int | None = None) -> NetOutput:
        """Predict the change in state or the next state, in the state's units.

        Args:
            rows: State (R, S), context (R, C) and action (R, A).
            loss_mode: If True, always use the networks, never the symmetry-breaking start.
            member: Index of the only member to use; None for all members.
        """
        n = self.n_models if member is None else 1
        state, context, action = (x.expand(n, *x.shape) for x in rows)
        out = self._network_output(state, context, action, loss_mode=loss_mode, member=member)
        return out._replace(mean=out.mean * self.unit, std=out.std * self.unit)

    def step_model(self, *, loss_mode: bool) -> StepModel:
        """One-step dynamics for a rollout; everything constant during a rollout is computed here."""
        predict = self._step_with_start if self.start_takes_part(loss_mode) else self.network.prepared()
        return StepModel(predict, self.unit, None if self._all_delta else self.is_delta, self.size)

    def start_takes_part(self, loss_mode: bool) -> bool:
        """Return True if the symmetry-breaking start contributes to predictions."""
        return not loss_mode and self.symmetry is not None and self.symmetry.uses_map

    def _step_with_start(self, state: Tensor, context: Tensor, action: Tensor) -> StepOutput:
        return StepOutput.of(self._network_output(state, context, action, loss_mode=False))

    def _network_output(
        self, state: Tensor, context: Tensor, action: Tensor, *, loss_mode: bool, member: int | None = None
    ) -> NetOutput:
        """Predict with all members or one, in the networks' units: learned, random, or a blend of both."""
        start = None if loss_mode else self.symmetry
        if start is not None and not start.uses_network:
            return start.predict(action, self.n_modes)
        if member is None:
            out = self.network(state, context, action)
        else:
            out = self.network.forward_member(member, state[0], context[0], action[0])
        return start.mix(out, action) if start is not None and start.uses_map else out


def _follow_start(members: Members, _: object) -> None:
    """After loading a state, set the symmetry-breaking start to its step count."""
    if members.symmetry is not None:
        members.symmetry.set_n_total_env_steps(int(members.n_total_env_steps))
