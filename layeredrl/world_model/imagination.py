"""Imagination: short rollouts of a policy through a learned world model, from states of the replay.

Model-based policy optimisation (Janner et al. 2019, arXiv 1906.08253) learns a policy from their transitions. Branches
end where the episode ends by the learned or known termination, and where the model is not trusted any more: after a
number of steps that grows with experience (the paper's), where the members disagree (MACURA, Frauenknecht et al. 2024,
arXiv 2405.19014), or where the information about the true state is lost (Infoprop, 2025, arXiv 2501.16918).
"""

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from tianshou.data import Batch
from torch import Tensor

from layeredrl import action_spaces
from layeredrl.checks import require_choice, require_count, require_counts, require_number, require_pair
from layeredrl.models.density import mixture_mean
from layeredrl.models.deterministic import DeterministicEnsemble
from layeredrl.models.ensemble import ProbabilisticEnsemble
from layeredrl.models.rollout import TOO_FAR, StepModel, choose_mode
from layeredrl.randomness import derive_seed, generator_state, restore_generator
from layeredrl.storage.tensor_ring import TensorRing
from layeredrl.world_model.config import require_span, share_of_span
from layeredrl.world_model.transitions import Transitions
from layeredrl.world_model.trust import DivergenceTrust, InformationTrust, Trust
from layeredrl.world_model.world_model import WorldModel

Bound = Literal["schedule", "macura", "infoprop"]

AT_ONCE = 4096
"""Branches that are rolled out together."""
N_FIRST_STEPS = 8192
"""First steps from real states, by which later ones are bounded."""

Policy = Callable[[Tensor], Tensor]
"""Flat observations (n, O) to actions (n, A) in [-1, 1], exploring as in the environment."""


@dataclass(frozen=True)
class ImaginationConfig:
    """How much and how far to imagine."""

    n_branches: int = 10_000
    """Branches, each from a state of the replay, after each fit of the model."""
    bound: Bound = "schedule"
    """Bound of the number of steps of a branch, beside terminations: the experience so far (schedule), disagreement
    of the members (macura), or the loss of information (infoprop)."""
    n_steps: tuple[int, int] = (5, 5)
    """Number of steps before and after the span of `schedule`; the second is the largest number in any case."""
    schedule: tuple[int, int] = (1_000, 10_000)
    """Environment steps between which the number of steps grows linearly, with the bound schedule."""
    divergence_factor: float = 2.0
    """macura: a branch goes on while the members' divergence is below this times a quantile of those at first steps
    from real states, averaged over all fits so far."""
    divergence_quantile: float = 0.95
    """macura: the quantile of the divergences at first steps by which branches are bounded."""
    loss_quantiles: tuple[float, float] = (0.9999, 0.01)
    """infoprop: a branch goes on while, in each dimension, the information lost in a step is below the first of these
    quantiles of the losses at first steps from real states, and that lost so far below the second one times the
    largest number of steps."""
    member_of: Literal["step", "branch"] = "step"
    """Draw the member of the ensemble that predicts at every step, or once for a branch."""
    deterministic: bool = False
    """If True, branches follow the members' means without noise."""
    kept_fits: int = 4
    """Number of fits whose imagined transitions are learned from. Memory has room for this times `n_branches` times
    the largest number of steps."""

    def __post_init__(self) -> None:
        require_counts(self, n_branches=1, kept_fits=1)
        require_choice("bound", self.bound, get_args(Bound))
        require_choice("member_of", self.member_of, ("step", "branch"))
        require_span("schedule", self.schedule)
        require_pair("n_steps", self.n_steps)
        for n in self.n_steps:
            require_count("n_steps", n)
        if self.n_steps[0] > self.n_steps[1]:
            raise ValueError(f"n_steps is {self.n_steps}, expected two numbers, the second at least the first")
        require_number("divergence_factor", self.divergence_factor, 0, math.inf, open_low=True)
        require_number("divergence_quantile", self.divergence_quantile, 0, 1)
        require_pair("loss_quantiles", self.loss_quantiles)
        for quantile in self.loss_quantiles:
            require_number("loss_quantiles", quantile, 0, 1)

    def trust(self) -> Trust | None:
        """Bound of branches beside their number of steps; None if there is none."""
        if self.bound == "macura":
            return DivergenceTrust(self.divergence_factor, self.divergence_quantile)
        return InformationTrust(self.loss_quantiles, self.n_steps[1]) if self.bound == "infoprop" else None


class Imagination:
    """Imagined transitions, and the world model that they come from.

    Args:
        world: World model with an ensemble as its dynamics, at the environment's time scale.
        config: How much and how far to imagine.
        discount: Discount per environment step.
        seed: Seed of the branches and of the sampling.

    Attributes:
        ring: The imagined transitions.
    """

    def __init__(self, world: WorldModel, config: ImaginationConfig, discount: float, *, seed: int = 0) -> None:
        dynamics = world.dynamics
        if not isinstance(dynamics, ProbabilisticEnsemble):
            raise TypeError(f"the dynamics is {type(dynamics).__name__}, expected a ProbabilisticEnsemble")
        if world.repeat != 1:
            raise ValueError(f"the world's repeat is {world.repeat}, expected 1 to imagine environment steps")
        if config.bound != "schedule" and isinstance(dynamics, DeterministicEnsemble):
            raise TypeError(
                f"the dynamics is {type(dynamics).__name__} with the bound {config.bound}, "
                "expected an ensemble that predicts variances"
            )
        encoder, device = world.encoder, dynamics.device
        # The policy needs whole observations: raises if the state and the context lack a part.
        encoder.observation(
            torch.zeros(encoder.state_dim, device=device), torch.zeros(encoder.context_dim, device=device)
        )
        self.trust = config.trust()
        if self.trust is not None and (dynamics.n_models < 2 or dynamics.n_modes > 1):
            raise ValueError(
                f"n_models is {dynamics.n_models} and n_modes is {dynamics.n_modes} with the bound {config.bound}, "
                "expected at least two members with one mode each"
            )
        self.world, self.dynamics, self.config, self.discount = world, dynamics, config, discount
        self.ring = TensorRing(config.kept_fits * config.n_branches * config.n_steps[1], dynamics.device)
        self._added: deque[int] = deque(maxlen=config.kept_fits)  # transitions of the last fits
        self._generator = torch.Generator(dynamics.device).manual_seed(derive_seed(seed, "imagination"))

    def __len__(self) -> int:
        """Number of imagined transitions to learn from."""
        return min(sum(self._added), len(self.ring))

    def n_steps(self, n_total_env_steps: int) -> int:
        """Largest number of steps of a branch."""
        first, last = self.config.n_steps
        if self.config.bound != "schedule":
            return last
        return int(first + (last - first) * share_of_span(self.config.schedule, n_total_env_steps))

    def sample(self, n: int) -> Batch:
        """Draw n imagined transitions: `obs`, `obs_next` (n, O), `act` (n, A), `rew` and `discount` (n,).

        `discount` is that per step times the probability that the episode goes on.
        """
        return Batch(self.ring.sample(n, len(self), self._generator))

    @torch.no_grad()
    def imagine(self, data: Transitions, policy: Policy, n_total_env_steps: int) -> dict[str, float]:
        """Roll out a policy from states of the data, and add the transitions.

        Args:
            data: Real transitions at the environment's time scale.
            policy: The policy.
            n_total_env_steps: Environment steps so far.

        Returns:
            Metrics: mean length of branches, shares of those that were cut, by the bound or because a prediction was
            absurd, and that terminated, the mean reward, and the number of transitions to learn from. Empty without
            data.
        """
        if not len(data):
            return {}
        before, n_branches = self.ring.n_added, self.config.n_branches
        model = self.dynamics.step_model(loss_mode=False)
        if self.trust is not None:
            obs = self._draw(data, N_FIRST_STEPS)
            state, context = self.world.encode(obs)
            self.trust.fit(self._step(model, state, context, policy(obs), self._members(len(obs)))[2])
        starts = self._draw(data, n_branches)
        n_steps = self.n_steps(n_total_env_steps)
        parts = (starts[i : i + AT_ONCE] for i in range(0, n_branches, AT_ONCE))
        totals = torch.stack([self._branches(part, policy, model, n_steps) for part in parts]).sum(0)
        self._added.append(self.ring.n_added - before)
        cut, ended, reward = (totals / n_branches).tolist()
        length = self._added[-1] / n_branches
        return {
            "imagination/length": length,
            "imagination/cut": cut,
            "imagination/terminated": ended,
            "imagination/reward": reward / max(length, 1e-9),
            "imagination/transitions": float(len(self)),
        }

    def _draw(self, data: Transitions, n: int) -> Tensor:
        """First observations of n transitions, drawn with replacement, (n, O)."""
        index = torch.randint(len(data), (n,), generator=self._generator, device=self._generator.device)
        obs: Tensor = data.take(index).obs
        return obs

    def _branches(self, obs: Tensor, policy: Policy, model: StepModel, n_steps: int) -> Tensor:
        """Roll out branches from observations (n, O), and add their transitions.

        Returns:
            Number of branches that were cut, and that terminated, and the sum of rewards, (3,).
        """
        state, context = self.world.encode(obs)
        member, so_far = self._members(len(obs)), obs.new_zeros(())
        far = self._too_far(state, model)
        cut = ended = reward_sum = obs.new_zeros(())
        for _ in range(n_steps):
            if self.config.member_of == "step":
                member = self._members(len(obs))
            action = policy(obs)
            state_next, term_prob, measures = self._step(model, state, context, action, member)
            so_far = so_far + measures
            kept = (state_next.abs() < far).all(-1)  # finite, too
            if self.trust is not None:
                kept = kept & self.trust.holds(measures, so_far)
            if self.world.has_termination:
                term_prob = self.world.termination(state, context, action, state_next)
            reward = self.world.reward(state, context, action, state_next)
            kept = kept & reward.isfinite() & term_prob.isfinite()
            obs_next = self.world.encoder.observation(state_next, context)
            rows = {"obs": obs, "act": action, "rew": reward, "obs_next": obs_next}
            rows["discount"] = self.discount * (1 - term_prob)
            self.ring.add({name: x[kept] for name, x in rows.items()})
            ends = torch.rand(term_prob.shape, generator=self._generator, device=obs.device) < term_prob
            cut, ended = cut + (~kept).sum(), ended + (kept & ends).sum()
            reward_sum = reward_sum + reward[kept].sum()
            going = kept & ~ends
            obs, state, context = obs_next[going], state_next[going], context[going]
            member, far = member[going], far[going]
            so_far = so_far[going] if self.trust is not None else so_far
            if not len(obs):
                break
        return torch.stack([cut, ended, reward_sum])

    def _step(
        self, model: StepModel, state: Tensor, context: Tensor, action: Tensor, member: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Next states (n, S), termination probabilities (n,), and measures of doubt (n, D), zero without any."""
        action = action_spaces.for_model(self.world.task.action_space, action, state.dtype)
        if self.trust is None:
            mean, std, term_prob = self._by_members(model, (state, context, action), member)
            return model.next_state(state, self._drawn(mean, std)), term_prob, state.new_zeros(())
        out = model.predict(*(x.expand(self.dynamics.n_models, *x.shape) for x in (state, context, action)))
        row = torch.arange(len(state), device=state.device)
        drawn = self._drawn(out.mean[member, row], out.std[member, row])
        drawn, measures = self.trust.measure(out.mean, out.std.square(), drawn)
        return model.next_state(state, drawn), out.term_prob[member, row], measures

    def _drawn(self, mean: Tensor, std: Tensor) -> Tensor:
        if self.config.deterministic:
            return mean
        noise = torch.randn(mean.shape, generator=self._generator, device=mean.device, dtype=mean.dtype)
        return mean + std * noise

    def _members(self, n: int) -> Tensor:
        """Draw the members of n branches, each of about as many, (n,)."""
        order = torch.randperm(n, generator=self._generator, device=self._generator.device)
        return order % self.dynamics.n_models

    def _by_members(self, model: StepModel, rows: tuple[Tensor, ...], member: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean (n, S), standard deviation (n, S) and termination probability (n,) by one member for each row.

        Each member computes its own rows only, filled up with zeros to the number of the one that has most.
        """
        n_members, order = self.dynamics.n_models, member.argsort()
        counts = torch.bincount(member, minlength=n_members)
        most = int(counts.max())
        first = counts.cumsum(0) - counts
        places = torch.empty_like(member)
        places[order] = member[order] * most + torch.arange(len(member), device=member.device) - first[member[order]]
        dealt = []
        for x in rows:
            room = x.new_zeros(n_members * most, x.shape[-1])
            room[places] = x
            dealt.append(room.view(n_members, most, -1))
        out = model.predict(*dealt)
        mean, std, term_prob = (x.flatten(0, 1)[places] for x in (out.mean, out.std, out.term_prob))
        if out.weights is None:
            return mean, std, term_prob
        weights = out.weights.flatten(0, 1)[places]
        if self.config.deterministic:
            return mixture_mean(mean, weights), std[..., 0, :], term_prob
        uniform = torch.rand(member.shape, generator=self._generator, device=member.device)
        return choose_mode(mean, weights, uniform), choose_mode(std, weights, uniform), term_prob

    def _too_far(self, state: Tensor, model: StepModel) -> Tensor:
        """Size from which on states of branches that begin at `state` (n, S) are not believed, (n, S); see `hold`."""
        if model.size is None:
            return torch.full_like(state, math.inf)
        return TOO_FAR * torch.maximum(state.abs(), model.size.clamp(min=1))

    def state_dict(self) -> dict[str, Any]:
        """The imagined transitions that are still learned from, the trust, and the generator's state."""
        return {
            "ring": self.ring.state_dict(len(self)),
            "added": list(self._added),
            "trust": {} if self.trust is None else self.trust.state_dict(),
            **generator_state(self._generator),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.ring.load_state_dict(state["ring"])
        self._added = deque(state["added"], maxlen=self.config.kept_fits)
        if self.trust is not None:
            self.trust.load_state_dict(state["trust"])
        restore_generator(self._generator, state)
