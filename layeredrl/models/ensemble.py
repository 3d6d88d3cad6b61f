"""Probabilistic ensembles (Chua et al. 2018, "Deep reinforcement learning in a handful of trials", section 4)."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, Self, get_args

import torch
from gymnasium.spaces import Box, Discrete
from tianshou.data import Batch
from torch import Tensor, nn

from layeredrl import checks
from layeredrl.models.normalization import RunningScale
from layeredrl.models.one_step import OneStepPredictions
from layeredrl.models.optimizer import make_optimizer
from layeredrl.models.rollout import (
    NO_NOISE,
    Follow,
    Noise,
    Propagation,
    add_moments,
    draw_noise,
    per_particle,
    rows_to_compute,
    simulate,
    to_public,
)
from layeredrl.models.spaces import ModelSpaces, counted_rows, deal
from layeredrl.models.stacked.graphs import GraphCache
from layeredrl.models.stacked.layers import gains_from_bfloat16
from layeredrl.models.stacked.network import StackedNetwork
from layeredrl.models.symmetry import SymmetryBreakingStart


class ProbabilisticEnsemble(OneStepPredictions):
    """An ensemble of networks, each predicting a mixture of Gaussians over next states and a termination probability.

    See https://arxiv.org/abs/1805.12114. The disagreement between members measures epistemic uncertainty (from too
    little data), the standard deviation that each predicts measures aleatoric uncertainty (randomness).

    Attributes:
        network: The members' networks, stacked.
        scale: Running standard deviation of the prediction targets; None without `normalize_targets`.
        start: The symmetry-breaking start, or None.
        graphs: CUDA graphs of rollouts; None if they are not used.
    """

    def __init__(
        self,
        state_space: Box,
        context_space: Box,
        action_space: Box | Discrete,
        partial_net: Callable[..., nn.Module],
        n_models: int = 1,
        n_modes: int = 1,
        n_particles_per_model: int = 1,
        learning_rate: float = 1e-3,
        create_optimizer: bool = False,
        device: torch.device = torch.device("cpu"),  # noqa: B008  the default that the Models API asks for
        predict_delta: bool = True,
        normalize_targets: bool = True,
        target_bn_momentum: float = 0.01,
        weighted_loss: bool = False,
        symmetry_breaking_start: bool = False,
        sb_start_duration: int = 100000,
        sb_start_factor: float = 1.5,
        partition_batch: bool = False,
        *,
        absolute_dims: Sequence[int] = (),
        alike_dims: Sequence[Sequence[int]] = (),
        propagation: Propagation = "tsinf",
        weight_decay: float | Sequence[float] = 0.0,
        beta_nll: float = 0.0,
        rollout_dtype: torch.dtype | Literal["auto"] | None = None,
        rollout_graphs: bool = True,
        **kwargs: Any,
    ) -> None:
        """Build the members and, with `create_optimizer`, an optimiser.

        Args:
            state_space: Box of shape (S,).
            context_space: Box of shape (C,) for information that is constant during an episode; C may be zero.
            action_space: Box of shape (A,), or Discrete.
            partial_net: Called with the three spaces and `n_modes` (or with the spaces alone), returns a randomly
                initialised network; see the documentation of the network contract.
            n_models: Number of members M.
            n_modes: Number of Gaussians K in each member's mixture.
            n_particles_per_model: Number of particles P that a rollout follows per member.
            learning_rate: Learning rate of the optimiser.
            create_optimizer: If True, create an optimiser, which `learn` needs.
            device: Device of the parameters.
            predict_delta: If True, the networks predict the change in state instead of the next state.
            normalize_targets: If True, the networks' outputs are in units of the targets' running standard deviation.
            target_bn_momentum: Weight of a new batch in that running statistic.
            weighted_loss: If True, training batches carry a `weight` for each transition.
            symmetry_breaking_start: If True, a random linear map of the action replaces the networks at first.
            sb_start_duration: Environment steps, summed over all instances, until only the networks are used.
            sb_start_factor: Length of the change in state that the random map gives an action of length one.
            partition_batch: If True, each member trains on its own share of a batch, not on all of it.
            absolute_dims: State dimensions predicted as the next value itself although `predict_delta`.
            alike_dims: Groups of state dimensions whose predictions have one scale, with `normalize_targets`.
            propagation: Propagation of particles in rollouts: "tsinf", each stays with its member; "ts1", shuffled over
                members at every step; "expectation", the mean over members (PETS, section 5); "mode", the mean of its
                member's likeliest mode, which is deterministic and, unlike a mean, never between two outcomes.
            weight_decay: L2 penalty `0.5 * weight_decay * |W|^2` on the weights of linear layers, one value for all
                layers or one for each in order.
            beta_nll: In training, weight each dimension of a member's loss by its predicted variance, in the unit of
                targets, to this power, in [0, 1] and without a gradient: towards 1 the means are fitted as by least
                squares, also where the variance is large (Seitzer et al. 2022, arXiv 2203.09168). Needs `n_modes` 1.
                Such training losses of different members are not comparable.
            rollout_dtype: Type of the networks' chains of layers (`nn.Sequential`) in rollouts, None for that of the
                parameters. `torch.bfloat16` is faster for wide networks and many rows on processors that support it;
                states, noise and the normalisation of inputs keep their type. "auto" uses it where it is faster.
                Chains with layers other than linear, layer norm and common activations, and rollouts with gradients,
                keep the parameters' type.
            rollout_graphs: On a GPU, replay rollouts without gradients in evaluation mode as CUDA graphs, one for each
                of a few numbers of rows. Parameters and buffers may change; plain attributes of a network, including
                tensors, may not. Rollouts that cannot be captured run without a graph, with one warning; networks
                with hooks on their forward do so without a warning.
            **kwargs: Further arguments of `Model`.
        """
        checks.require_number("learning_rate", learning_rate, 0, math.inf, open_low=True)
        checks.require_number("target_bn_momentum", target_bn_momentum, 0, 1)
        checks.require_choice("propagation", propagation, get_args(Propagation))
        checks.require_number("beta_nll", beta_nll, 0, 1)
        if beta_nll > 0 and n_modes > 1:
            raise ValueError(f"beta_nll is {beta_nll} with n_modes {n_modes}, expected 0 for several modes")
        if rollout_dtype not in (None, "auto", torch.float32, torch.float64, torch.bfloat16, torch.float16):
            raise ValueError(f"rollout_dtype is {rollout_dtype!r}, expected a floating type of torch, 'auto' or None")
        spaces = ModelSpaces(state_space, context_space, action_space)
        is_delta, groups = spaces.dims(predict_delta, absolute_dims, alike_dims)
        networks = spaces.make_networks(partial_net, n_models, n_modes)
        scale = RunningScale(spaces.state_dim, target_bn_momentum, groups) if normalize_targets else None
        start = None
        if symmetry_breaking_start:
            if not isinstance(action_space, Box):
                raise TypeError(f"symmetry_breaking_start needs a Box action_space, got {type(action_space).__name__}")
            start = SymmetryBreakingStart(spaces.state_dim, spaces.action_dim, sb_start_duration, sb_start_factor)
        super().__init__(
            spaces,
            StackedNetwork(networks, n_modes, spaces.random_inputs),
            scale,
            start,
            is_delta,
            beta_nll=beta_nll,
            n_particles_per_model=n_particles_per_model,
            device=device,
            **kwargs,
        )
        self.weighted_loss, self.partition_batch = weighted_loss, partition_batch
        self.propagation: Propagation = propagation
        self.rollout_dtype = rollout_dtype
        self._rollout_graphs = rollout_graphs
        self.graphs = self._make_graphs()
        if create_optimizer:
            self.optimizer = make_optimizer(self.network, learning_rate, weight_decay)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = self.device
        super()._apply(fn, recurse)
        if self.device != before:
            self.graphs = self._make_graphs()
        return self

    def _make_graphs(self) -> GraphCache | None:
        return GraphCache() if self._rollout_graphs and self.device.type == "cuda" else None

    def loss(self, batch: Batch) -> Tensor:
        """Sum over the members of their mean negative log density, plus the networks' own regularisation.

        For a transition this is the negative log density of what the member predicts (change in state or next state)
        plus the binary cross-entropy of its termination, times its weight. It is always the learned networks' loss,
        never that of the symmetry-breaking start. In training mode, `beta_nll` weights the dimensions.

        Args:
            batch: Keys `state` (N, S), `context` (N, C), `act` (N, A) or (N, 1) of integers, `state_next` (N, S),
                `terminated` (N); with `weighted_loss` also `weight` (N); optionally `validity_mask` (N), false for
                rows to leave out. More leading dimensions are allowed.

        Returns:
            A scalar.
        """
        rows = self.spaces.training_rows(batch, self.dtype, self.weighted_loss)
        if self.training and self.scale is not None:
            self.scale.update(self.targets(rows), rows["state"], counted_rows(rows))
        if self.partition_batch:
            rows = deal(rows, self.n_models)
        else:
            rows = {key: x.expand(self.n_models, *x.shape) for key, x in rows.items()}
        return self.member_losses(rows).sum() + self.regularization()

    def rollout(
        self,
        initial_state: Tensor,
        context: Tensor,
        actions: Tensor,
        deterministic: bool = False,
        loss_mode: bool = False,
        *,
        generator: torch.Generator | None = None,
        statistics: bool = True,
        n_alike: int = 1,
    ) -> Batch:
        """Follow a sequence of actions, open loop.

        Args:
            initial_state: Shape (B, S).
            context: Shape (B, C), held for the whole rollout.
            actions: Shape (B, H, A), or (B, H, 1) of integers.
            deterministic: Follow the mean of each member's mixture instead of sampling.
            loss_mode: Always use the learned networks, not the symmetry-breaking start.
            generator: Source of randomness; None for torch's global one.
            statistics: If True, return means and variances too.
            n_alike: Number of consecutive rows of the batch that draw the same noise.

        Returns:
            Batch with `state` (B, M, P, H+1, S), `state_mean` and `state_var` over particles (B, M, H+1, S),
            `term_prob` and `diverged` (B, M, P, H); and, if particles stay with their member,
            `state_epistemic_var`, the variance over members of the means, and `state_aleatoric_var`, the mean over
            members of the variances, both (B, H+1, S). `diverged` is true from the step at which a particle left the
            finite range; its state is held from there on.
        """
        self.spaces.check_plan(initial_state, context, actions, self.dtype)
        checks.require_count("n_alike", n_alike)
        b, m, p, h = len(initial_state), self.n_models, self.n_particles_per_model, actions.shape[1]
        n_rows = rows_to_compute(b, p, self.network.row_multiple, few_sizes=self.graphs is not None)
        noise, follow = NO_NOISE, self._follow(deterministic=deterministic)
        if follow == "sample":
            sizes, shuffle = (b, m, p, h, self.state_dim), self.propagation == "ts1"
            noise = draw_noise(
                sizes, self.n_modes, shuffle, initial_state, generator, n_alike=n_alike, n_added=n_rows - b
            )
        spread = partial(per_particle, n_rows=n_rows, n_particles=p)
        simulated = self._simulate(
            spread(initial_state), spread(context), spread(actions.transpose(0, 1)), noise, follow, loss_mode=loss_mode
        )
        states, term_probs, diverged = simulated if n_rows == b else (x[:, :, : b * p] for x in simulated)
        result = to_public(states, term_probs, diverged, (b, p))
        if statistics:
            add_moments(result, members_apart=self.propagation in ("tsinf", "mode"))
        return result

    def _follow(self, *, deterministic: bool) -> Follow:
        if self.propagation == "expectation":
            return "expectation"
        if deterministic:
            return "mean"
        return "mode" if self.propagation == "mode" else "sample"

    @contextmanager
    def reduced(self, n_rows: int) -> Iterator[None]:
        """Compute predictions without gradients in the type that rollouts of `n_rows` rows have (`rollout_dtype`)."""
        with self.network.computing_in(self._reduced_dtype(n_rows)):
            yield

    def _simulate(
        self, state: Tensor, context: Tensor, actions: Tensor, noise: Noise, follow: Follow, *, loss_mode: bool
    ) -> tuple[Tensor, ...]:
        """Run `simulate`, as a CUDA graph if possible, from state (R, S), context (R, C) and actions (H, R, A)."""
        reduced = self._reduced_dtype(len(state))

        def run(state: Tensor, context: Tensor, actions: Tensor, *noise: Tensor | None) -> tuple[Tensor, ...]:
            state, context = (x.expand(self.n_models, -1, -1) for x in (state, context))
            with self.network.computing_in(reduced):
                model = self.step_model(loss_mode=loss_mode)
                return simulate(model, state, context, actions, Noise(*noise), follow=follow)

        inputs = (state, context, actions, *noise)
        if self.graphs is None or torch.is_grad_enabled() or self.training or self.start_takes_part(loss_mode):
            return run(*inputs)
        if self.network.is_hooked or not len(state):  # a replay does not call hooks
            return run(*inputs)
        live = (*self.parameters(), *self.buffers())
        return self.graphs(run, inputs, (follow, reduced), dtype=reduced or self.dtype, live=live)

    def _reduced_dtype(self, n_rows: int) -> torch.dtype | None:
        """Type of the networks in a rollout of `n_rows` rows per member; None for that of the parameters."""
        if self.rollout_dtype == "auto":
            width = max((weight.shape[2] for weight in self.network.linear_weights()), default=0)
            return torch.bfloat16 if gains_from_bfloat16(self.device, n_rows, width) else None
        return None if self.rollout_dtype == self.dtype else self.rollout_dtype
