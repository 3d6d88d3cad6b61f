"""Probabilistic ensembles (Chua et al. 2018, "Deep reinforcement learning in a handful of trials", section 4)."""

import math
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any, Literal, cast, get_args

import torch
from gymnasium.spaces import Box, Discrete
from tianshou.data import Batch
from torch import Tensor, nn

from layeredrl import checks
from layeredrl.models.density import mixture_log_prob, mixture_mean, termination_loss
from layeredrl.models.interface import Interface, counted_rows, deal
from layeredrl.models.layers import StackedLinear, gains_from_bfloat16
from layeredrl.models.model import Model
from layeredrl.models.normalization import RunningScale
from layeredrl.models.rollout import Propagation, StepModel, add_moments, choose_mode, draw_noise, simulate, to_public
from layeredrl.models.stacking import NetOutput, StackedNetwork
from layeredrl.models.symmetry import SymmetryBreakingStart


class ProbabilisticEnsemble(Model):
    """An ensemble of networks, each predicting a mixture of Gaussians over next states and a termination probability.

    See https://arxiv.org/abs/1805.12114. The disagreement of the members tells what the data has not settled
    (epistemic uncertainty), the spread that each predicts what is random (aleatoric uncertainty).

    Attributes:
        network: The members' networks, stacked.
        scale: Running standard deviation of the prediction targets; None without `normalize_targets`.
        start: The symmetry-breaking start, or None.
    """

    is_delta: Tensor

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
        propagation: Propagation = "tsinf",
        weight_decay: float | Sequence[float] = 0.0,
        rollout_dtype: torch.dtype | Literal["auto"] | None = None,
        **kwargs: Any,
    ) -> None:
        """Build the members and, if asked for, an optimiser.

        Args:
            state_space: Box of shape (S,).
            context_space: Box of shape (C,), of what is constant during an episode; C may be zero.
            action_space: Box of shape (A,), or Discrete.
            partial_net: Called with the three spaces and `n_modes` (or with the spaces alone), returns a randomly
                initialised network; see the documentation of the network contract.
            n_models: Number of members M.
            n_modes: Number of Gaussians K that a member mixes.
            n_particles_per_model: Particles P that a rollout follows per member.
            learning_rate: Of the optimiser.
            create_optimizer: Whether to create an optimiser, which `learn` needs.
            device: Where the parameters live.
            predict_delta: Whether the networks predict the change in state instead of the next state.
            normalize_targets: Whether what the networks predict is scaled by its running standard deviation.
            target_bn_momentum: Weight of a new batch in that running statistic.
            weighted_loss: Whether training batches carry a `weight` for each transition.
            symmetry_breaking_start: Whether a random linear map of the action stands in for the networks at first.
            sb_start_duration: Environment steps (all instances summed) until the networks have taken over.
            sb_start_factor: Length of the change in state that the random map gives an action of length one.
            partition_batch: Whether each member trains on its own share of a batch, not on all of it.
            absolute_dims: State dimensions predicted as the next value itself although `predict_delta`.
            propagation: How rollouts follow particles: "tsinf", each stays with its member; "ts1", shuffled over the
                members at every step; "expectation", the mean over members (PETS, section 5).
            weight_decay: L2 penalty 0.5 * weight_decay * |W|^2 on the weights of linear layers, one value for all
                layers or one for each in order.
            rollout_dtype: Type that rollouts compute the networks' chains of layers (`nn.Sequential`) in, None for
                that of the parameters. `torch.bfloat16` is faster for wide networks and many rows where the processor
                has it; states, noise and the normalisation of inputs stay as they are. "auto" takes it where it gains.
                Chains of other layers than linear, layer norm and common activations, and rollouts with gradients,
                keep the parameters' type.
            **kwargs: Further arguments of `Model`.
        """
        super().__init__(n_models, n_particles_per_model, device, **kwargs)
        self.interface = Interface(state_space, context_space, action_space)
        self.state_dim = self.interface.state_dim
        checks.require_count("n_modes", n_modes)
        checks.require_number("learning_rate", learning_rate, 0, math.inf, open_low=True)
        checks.require_number("target_bn_momentum", target_bn_momentum, 0, 1)
        checks.require_choice("propagation", propagation, get_args(Propagation))
        if rollout_dtype not in (None, "auto", torch.float32, torch.float64, torch.bfloat16, torch.float16):
            raise ValueError(f"rollout_dtype is {rollout_dtype!r}, expected a floating type of torch, 'auto' or None")
        self.rollout_dtype = rollout_dtype
        self.n_modes = n_modes
        self.propagation: Propagation = propagation
        self.weighted_loss = weighted_loss
        self.partition_batch = partition_batch
        is_delta = torch.full((self.state_dim,), float(predict_delta))
        for dim in absolute_dims:
            checks.require_count("absolute_dims", dim, minimum=0)
            if dim >= self.state_dim:
                raise ValueError(f"absolute_dims holds {dim}, expected less than the state's width {self.state_dim}")
            is_delta[dim] = 0.0
        self._all_delta = bool(is_delta.all())
        self.register_buffer("is_delta", is_delta, persistent=False)

        members = [self.interface.make_network(partial_net, n_modes) for _ in range(n_models)]
        self.network = StackedNetwork(members, n_modes, self.interface.random_inputs)
        self.scale = RunningScale(self.state_dim, target_bn_momentum) if normalize_targets else None
        self.start: SymmetryBreakingStart | None = None
        if symmetry_breaking_start:
            if not isinstance(action_space, Box):
                raise TypeError(f"symmetry_breaking_start needs a Box action_space, got {type(action_space).__name__}")
            checks.require_count("sb_start_duration", sb_start_duration)
            checks.require_number("sb_start_factor", sb_start_factor, 0, math.inf)
            self.start = SymmetryBreakingStart(
                self.state_dim, self.interface.action_dim, sb_start_duration, sb_start_factor
            )
        self.to(self.device)
        self.network.move_template(self.device)
        if create_optimizer:
            self.optimizer = self._make_optimizer(learning_rate, weight_decay)
        cast(Any, self).register_load_state_dict_post_hook(lambda module, _: module._follow_start())  # untyped in torch

    # ------------------------------------------------------------------ training

    def get_parameters(self) -> Generator[Tensor, None, None]:
        """The parameters of all members, one tensor for each with the member axis first."""
        yield from self.network.parameters()

    def loss(self, batch: Batch) -> Tensor:
        """Sum over the members of their mean negative log density, plus the networks' own regularisation.

        For a transition this is the negative log density of what the member predicts (change in state or next state)
        plus the binary cross-entropy of its termination, times its weight. It is always the learned networks' loss,
        never that of the symmetry-breaking start.

        Args:
            batch: Keys `state` (N, S), `context` (N, C), `act` (N, A) or (N, 1) of integers, `state_next` (N, S),
                `terminated` (N); with `weighted_loss` also `weight` (N); optionally `validity_mask` (N), false for
                rows to leave out. More leading dimensions are allowed.

        Returns:
            A scalar.
        """
        rows = self.interface.training_rows(batch, self.dtype, self.weighted_loss)
        if self.training and self.scale is not None:
            self.scale.update(self.targets(rows), counted_rows(rows))
        if self.partition_batch:
            rows = deal(rows, self.n_models)
        else:
            rows = {key: x.expand(self.n_models, *x.shape) for key, x in rows.items()}
        return self.member_losses(rows).sum() + self.regularization()

    def regularization(self) -> Tensor:
        """What the networks themselves add to the loss, summed over members, a scalar."""
        term = self.network.regularization()
        return torch.zeros((), device=self.device) if term is None else term

    def member_losses(self, rows: dict[str, Tensor]) -> Tensor:
        """The loss of each member on its own rows, (M,), without regularisation.

        Args:
            rows: Members first: `state` (M, N, S), `context` (M, N, C), `act` (M, N, A), `state_next` (M, N, S),
                `terminated` (M, N), and optionally `weight` (M, N) and `validity_mask` (M, N).
        """
        valid, weight = rows.get("validity_mask"), rows.get("weight")
        target = self.targets(rows)
        out = self.network(rows["state"], rows["context"], rows["act"])
        terms = termination_loss(out.term_prob, rows["terminated"])
        if self.scale is None:
            terms = terms - mixture_log_prob(target, *out[:3])
        else:  # in the networks' units, where numbers are moderate; the change of units is a constant
            terms = terms - mixture_log_prob(target / self.scale.std, *out[:3]) + self.scale.std.log().sum()
        if weight is not None:
            terms = terms * weight
        if valid is None:
            return terms.mean(1)
        return torch.where(valid, terms, 0.0).sum(1) / valid.sum(1).clamp(min=1)

    def targets(self, rows: dict[str, Tensor]) -> Tensor:
        """What the networks should predict, in the state's units: change in state or next state (..., S)."""
        return rows["state_next"] - self._base(rows["state"])

    def fit_statistics(self, rows: dict[str, Tensor]) -> None:
        """Take the statistics of all the data (N, ...) that a fit will use: of the inputs and of the targets."""
        self.network.fit_inputs(rows["state"], rows["context"], rows["act"])
        if self.scale is not None:
            self.scale.fit(self.targets(rows))

    # ------------------------------------------------------------------ prediction

    def predict(
        self,
        state: Tensor,
        context: Tensor,
        action: Tensor,
        std: Tensor | None = None,
        *,
        loss_mode: bool = False,
    ) -> tuple[Tensor, ...]:
        rows, lead = self.interface.rows(self.dtype, state=state, context=context, action=action)
        out = self._predicted(rows, loss_mode=loss_mode)
        shape = (*lead, self.n_models, self.n_modes)
        mean = out.mean + self._base(rows[0]).unsqueeze(-2)
        mean = mean.transpose(0, 1).reshape(*shape, self.state_dim)
        predicted_std = out.std.transpose(0, 1).reshape(*shape, self.state_dim)
        if std is not None:
            predicted_std = self._as_std(std, predicted_std.shape).clone()
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
        rows, lead = self.interface.rows(self.dtype, state=state, context=context, action=action)
        out = self._predicted(rows, loss_mode=False)
        n_rows = out.mean.shape[1]
        device, dtype = out.mean.device, out.mean.dtype
        member = torch.randint(self.n_models, (n_rows,), generator=generator, device=device)
        row = torch.arange(n_rows, device=device)
        mean, std, weights = (x[member, row] for x in out[:3])
        uniform = torch.rand((n_rows,), generator=generator, device=device, dtype=dtype)
        normal = torch.randn((n_rows, self.state_dim), generator=generator, device=device, dtype=dtype)
        mean, std = (choose_mode(x, weights, uniform) for x in (mean, std))
        return (self._base(rows[0]) + mean + std * normal).reshape(*lead, self.state_dim)

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
                `predict_delta`), before the density is taken. It makes sense with a given `std` only.

        Returns:
            Log density (...), termination probability averaged over members (...), and a dict with `means`
            (..., M, S), each member's mean in the predicted space, after `transform`.
        """
        rows, lead = self.interface.rows(self.dtype, state=state, context=context, action=action, next_state=next_state)
        out = self._predicted(rows[:3], loss_mode=loss_mode)
        log_prob, means = self._log_prob(rows, lead, out, std, transform)
        log_prob = torch.logsumexp(log_prob, 0) - math.log(self.n_models)
        info = {"means": means.transpose(0, 1).reshape(*lead, self.n_models, -1)}
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
        """The same as `get_log_prob` for one member.

        Args:
            id: Index of the member.
            state: Shape (..., S).
            context: Shape (..., C).
            action: Shape (..., A).
            next_state: Shape (..., S).
            std: As in `get_log_prob`.
            loss_mode: As in `get_log_prob`.
            transform: As in `get_log_prob`.

        Returns:
            Log density (...), termination probability (...), and the mean of the member's mixture (..., S) in the
            predicted space, after `transform`.
        """
        checks.require_count("id", id, minimum=0)
        if id >= self.n_models:
            raise ValueError(f"id is {id}, expected a member in [0, {self.n_models})")
        rows, lead = self.interface.rows(self.dtype, state=state, context=context, action=action, next_state=next_state)
        out = self._predicted(rows[:3], loss_mode=loss_mode, member=id)
        log_prob, means = self._log_prob(rows, lead, out, std, transform)
        return log_prob.reshape(lead), out.term_prob.reshape(lead), means.reshape(*lead, -1)

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
    ) -> Batch:
        """Follow a sequence of actions, open loop.

        Args:
            initial_state: Shape (B, S).
            context: Shape (B, C), held for the whole rollout.
            actions: Shape (B, H, A), or (B, H, 1) of integers.
            deterministic: Follow the mean of each member's mixture instead of sampling.
            loss_mode: Always use the learned networks, not the symmetry-breaking start.
            generator: Source of randomness; None for torch's global one.
            statistics: Whether to return means and variances too.

        Returns:
            Batch with `state` (B, M, P, H+1, S), `state_mean` and `state_var` over particles (B, M, H+1, S),
            `term_prob` and `diverged` (B, M, P, H); and, if particles stay with their member,
            `state_epistemic_var`, the variance over members of the means, and `state_aleatoric_var`, the mean over
            members of the variances, both (B, H+1, S). `diverged` is true from the step at which a particle left the
            finite range; its state is held from there on.
        """
        self.interface.check("initial_state", initial_state, self.dtype, n_dims=2)
        self.interface.check("context", context, self.dtype, n_dims=2)
        self.interface.check("actions", actions, self.dtype, n_dims=3)
        checks.require_same_lead({"context": context}, initial_state.shape[:-1])
        b, m, p, h = len(initial_state), self.n_models, self.n_particles_per_model, actions.shape[1]
        if actions.shape[0] != b or h == 0:
            raise ValueError(
                f"actions has shape {tuple(actions.shape)}, expected ({b}, H, {self.interface.action_dim})"
            )

        # More rows, if that makes members comparable to the last bit; what they give is dropped.
        added = -b % (self.network.row_multiple // math.gcd(self.network.row_multiple, p))

        def per_particle(x: Tensor) -> Tensor:
            x = torch.cat([x, x[..., :1, :].expand(*x.shape[:-2], added, -1)], -2) if added else x
            return x if p == 1 else x.repeat_interleave(p, -2)

        noise = None
        if not deterministic and self.propagation != "expectation":
            sizes = (b + added, m, p, h, self.state_dim)
            noise = draw_noise(sizes, self.n_modes, self.propagation == "ts1", initial_state, generator)
        with self.network.computing_in(self._reduced_dtype((b + added) * p)):
            simulated = simulate(
                StepModel(self._step_function(loss_mode), self._std, None if self._all_delta else self.is_delta),
                per_particle(initial_state).expand(m, -1, -1),
                per_particle(context).expand(m, -1, -1),
                per_particle(actions.transpose(0, 1)),
                noise,
                expectation=self.propagation == "expectation",
            )
        states, term_probs, diverged = (x[:, :, : b * p] for x in simulated)
        result = to_public(states, term_probs, diverged, b)
        if statistics:
            add_moments(result, members_apart=self.propagation == "tsinf")
        return result

    def set_n_total_env_steps(self, n_total_env_steps: int) -> None:
        super().set_n_total_env_steps(n_total_env_steps)
        if self.start is not None:
            self.start.set_n_total_env_steps(n_total_env_steps)

    # ------------------------------------------------------------------ inside: members first, (M, R, ...)

    def _network_output(
        self, state: Tensor, context: Tensor, action: Tensor, *, loss_mode: bool, member: int | None = None
    ) -> NetOutput:
        """Prediction of all members, or of one, in the networks' units: learned, random, or a blend of the two."""
        start = None if loss_mode else self.start
        if start is not None and not start.uses_network:
            return start.predict(action, self.n_modes)
        if member is None:
            out = self.network(state, context, action)
        else:
            out = self.network.forward_member(member, state[0], context[0], action[0])
        return start.mix(out, action) if start is not None and start.uses_map else out

    def _step_function(self, loss_mode: bool) -> Callable[[Tensor, Tensor, Tensor], NetOutput]:
        """`_network_output` for the many calls of a rollout."""
        if loss_mode or self.start is None or not self.start.uses_map:
            return self.network.prepared()
        return partial(self._network_output, loss_mode=loss_mode)

    def _predicted(self, rows: Sequence[Tensor], *, loss_mode: bool, member: int | None = None) -> NetOutput:
        """What is predicted (change in state or next state) for rows (R, ...), in the state's units."""
        n = self.n_models if member is None else 1
        state, context, action = (x.expand(n, *x.shape) for x in rows)
        out = self._network_output(state, context, action, loss_mode=loss_mode, member=member)
        return out._replace(mean=out.mean * self._std, std=out.std * self._std)

    @property
    def _std(self) -> Tensor:
        """Units of the networks' outputs, (S,)."""
        return torch.ones_like(self.is_delta) if self.scale is None else self.scale.std

    def _base(self, state: Tensor) -> Tensor:
        """What a prediction is relative to: the state in dimensions predicted as a change, zero in others."""
        return state if self._all_delta else state * self.is_delta

    def _log_prob(
        self,
        rows: list[Tensor],
        lead: torch.Size,
        out: NetOutput,
        std: Tensor | None,
        transform: nn.Module | None,
    ) -> tuple[Tensor, Tensor]:
        """Log densities (m, R) and mixture means (m, R, S) of the members in `out`, in the predicted space."""
        target, mean, member_std = rows[3] - self._base(rows[0]), out.mean, out.std
        if transform is not None:
            if not callable(transform):
                raise TypeError(f"transform is {type(transform).__name__}, expected a torch.nn.Module")
            target, mean = transform(target), transform(mean)
        if std is not None:
            # A transform may change the width; the given deviation lives in the space that it maps to.
            member_std = self._as_std(std, (*lead, target.shape[-1])).reshape(1, -1, 1, target.shape[-1])
        return mixture_log_prob(target, mean, member_std, out.weights), mixture_mean(mean, out.weights)

    # ------------------------------------------------------------------ inside: construction and arguments

    def _make_optimizer(self, learning_rate: float, weight_decay: float | Sequence[float]) -> torch.optim.Adam:
        weights = [layer.weight for layer in self.network.modules() if isinstance(layer, StackedLinear)]
        others = [p for p in self.get_parameters() if not any(p is w for w in weights)]
        decays = [weight_decay] * len(weights) if isinstance(weight_decay, int | float) else list(weight_decay)
        if len(decays) != len(weights):
            raise ValueError(f"weight_decay has {len(decays)} values, expected one for each of {len(weights)} layers")
        for decay in decays:
            checks.require_number("weight_decay", decay, 0, math.inf)
        groups: list[dict[str, Any]] = [{"params": others, "weight_decay": 0.0}]
        for decay in sorted(set(decays)):
            group = [w for w, d in zip(weights, decays, strict=True) if d == decay]
            groups.append({"params": group, "weight_decay": decay})
        groups = [group for group in groups if group["params"]]
        return torch.optim.Adam(groups, lr=learning_rate, fused=True)

    def _follow_start(self) -> None:
        if self.start is not None:
            self.start.set_n_total_env_steps(int(self.n_total_env_steps))

    def _reduced_dtype(self, n_rows: int) -> torch.dtype | None:
        """Type to compute a rollout of n rows a member in; None for that of the parameters."""
        if self.rollout_dtype == "auto":
            widths = [layer.weight.shape[2] for layer in self.network.modules() if isinstance(layer, StackedLinear)]
            return torch.bfloat16 if gains_from_bfloat16(self.device, n_rows, max(widths, default=0)) else None
        return None if self.rollout_dtype == self.dtype else self.rollout_dtype

    @property
    def dtype(self) -> torch.dtype:
        """Type of the parameters, and of the tensors that the model wants."""
        return self.is_delta.dtype

    def _as_std(self, std: Tensor, shape: Sequence[int]) -> Tensor:
        if not isinstance(std, Tensor):
            raise TypeError(f"std is {type(std).__name__}, expected a torch.Tensor")
        checks.require_dtype("std", std, self.dtype)
        try:
            return std.expand(*shape)
        except RuntimeError:
            raise ValueError(f"std has shape {tuple(std.shape)}, expected it to broadcast to {tuple(shape)}") from None
