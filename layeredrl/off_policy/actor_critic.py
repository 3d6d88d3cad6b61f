"""SAC and TD3 of tianshou with updates of few calls: both critics as one network, gradients written out.

An update never waits for the device: where a gradient is not finite, the optimisers skip their steps themselves.
"""

import math
from abc import abstractmethod
from collections.abc import Hashable, Sequence
from functools import cached_property
from typing import Any, cast

import torch
from tianshou.algorithm.algorithm_base import TrainingStats
from tianshou.algorithm.modelfree.ddpg import ActorCriticOffPolicyAlgorithm
from tianshou.algorithm.modelfree.sac import AutoAlpha, FixedAlpha
from tianshou.algorithm.optim import OptimizerFactory
from tianshou.data import Batch
from torch import Tensor, nn

from layeredrl.models.fused_adam import FusedAdam, skipped
from layeredrl.off_policy.stacked_mlp import StackedMLP, Tape
from layeredrl.off_policy.update_graphs import UpdateGraphs

_EPS = torch.finfo(torch.float32).eps


class Critics(nn.Module):
    """Two critics.

    Args:
        nets: Perceptrons with one output.
    """

    def __init__(self, nets: list[nn.Sequential]) -> None:
        super().__init__()
        self.net = StackedMLP(nets)

    def forward(self, obs: Tensor, act: Tensor, info: Any = None) -> Tensor:
        """Values (2, n) of actions (n, A), for inputs (n, I)."""
        values: Tensor = self.net(torch.cat([obs, act], -1))
        return values[..., 0]


class StackedActorCritic(ActorCriticOffPolicyAlgorithm[Any, Any]):
    """An actor and two critics, whose update is a method of its own; tianshou's trainer cannot run it.

    Args:
        policy: Policy with an actor of this module.
        critics: Both critics.
        optim: Factory of `FusedAdam`, for each of the networks.
        tau: Step size of the target networks towards the networks.
        gamma: Discount per environment step.
        pessimism: How far a value lies below the mean of both critics, in halves of their difference.
    """

    critic: Critics

    def __init__(
        self,
        *,
        policy: Any,
        critics: Critics,
        optim: OptimizerFactory,
        tau: float,
        gamma: float,
        pessimism: float = 1.0,
    ) -> None:
        super().__init__(policy=policy, policy_optim=optim, critic=critics, critic_optim=optim, tau=tau, gamma=gamma)
        self.pessimism = pessimism
        self._actor_parameters = [*policy.actor.parameters()]
        self._critic_parameters = [*critics.parameters()]
        self.graphs = UpdateGraphs() if self._critic_parameters[0].is_cuda else None
        self._names: dict[Hashable, tuple[str, ...]] = {}  # of an update's metrics

    @torch.no_grad()
    def learn(self, batch: Batch) -> dict[str, float | Tensor]:
        """Take one update of actor, critics and target networks, without synchronising with the device.

        Where a gradient is not finite, neither its network nor anything updated after it changes.

        Args:
            batch: As in `off_policy.update`.

        Returns:
            Scalars on the device: losses by tianshou's names; `target`, the mean of the targets; `gradient_norm`, the
            sum of the norms of all parameters' gradients, which is not finite if anything was skipped.
        """
        rows = (*(batch[name] for name in _ROWS), *self._noise(batch.act))
        # A graph holds the learning rates: where schedules change them, each update would be captured anew.
        state = [] if self.graphs is None or self.lr_schedulers else self._state()
        if self.graphs is None or not state:
            return self._step_all(*rows)
        variant = self._variant()

        def update(*inputs: Tensor) -> Tensor:
            metrics = self._step_all(*inputs)
            self._names[variant] = tuple(metrics)
            norm = cast(Tensor, metrics["gradient_norm"])
            return torch.stack([x if isinstance(x, Tensor) else norm.new_full((), x) for x in metrics.values()])

        rates = tuple(group["lr"] for optimizer in self._adams() for group in optimizer.param_groups)
        values = self.graphs(update, rows, (variant, rates), state)
        return dict(zip(self._names[variant], values.unbind(), strict=True))

    @abstractmethod
    def _noise(self, like: Tensor) -> tuple[Tensor, ...]:
        """Draw the randomness of an update, each part of it like the actions (n, A)."""

    @abstractmethod
    def _step_all(
        self, obs: Tensor, act: Tensor, rew: Tensor, obs_next: Tensor, discount: Tensor, *noise: Tensor
    ) -> dict[str, float | Tensor]:
        """`learn`, as a function of its inputs that branches on none of their values."""

    def _variant(self) -> Hashable:
        """Whatever decides what the next update does."""
        return None

    def _adams(self) -> list[torch.optim.Optimizer]:
        """All optimisers."""
        return [self.policy_optim._optim, self.critic_optim._optim]

    def _state(self) -> list[Tensor]:
        """All tensors that an update changes; none before the first update, which makes those of the optimisers."""
        state = list(self._networks)
        for optimizer in self._adams():
            for group in optimizer.param_groups:
                own = [optimizer.state[p] for p in group["params"]]
                if not all(own):
                    return []
                state += [own[0]["step"], *(x[name] for x in own for name in ("exp_avg", "exp_avg_sq"))]
        return state

    @cached_property
    def _networks(self) -> list[Tensor]:
        """Parameters and buffers of all networks, each once."""
        tensors = [*self.parameters(), *self.buffers(), *self._lagged[0]]
        return list({id(x): x for x in tensors}.values())

    def _update_with_batch(self, batch: Any) -> TrainingStats:
        raise NotImplementedError(
            f"{type(self).__name__} is trained by PolicyLevel, or by its `learn`; "
            "tianshou's own trainer needs an algorithm of tianshou's own"
        )

    def _target_q_compute_value(self, obs_batch: Batch, act_batch: Any) -> Tensor:
        return self._slow_value(cast(Tensor, obs_batch.obs), act_batch.act)

    def _slow_value(self, obs: Tensor, act: Tensor) -> Tensor:
        """Value by the target critics, (n,)."""
        slow: Tensor = self.critic_old.module(obs, act)
        return self.value_of(slow)

    def value_of(self, values: Tensor) -> Tensor:
        """Value by those of both critics, (2, ...): the lower one with a pessimism of 1, their mean with 0."""
        if self.pessimism == 1:
            return values.amin(0)
        low, high = values.aminmax(dim=0)
        return low.lerp(high, (1 - self.pessimism) / 2)

    def _fit_critics(self, obs: Tensor, act: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Take a step of the critics towards targets (n,); returns their losses (2,) and the norm of the gradient."""
        net: StackedMLP = self.critic.net
        values, tape = net.run(torch.cat([obs, act], -1))
        error = values[..., 0] - target
        net.backward((error * (2 / len(target))).unsqueeze(-1), tape)
        norm = _norm(self._critic_parameters)
        _step(self.critic_optim._optim, norm)
        return error.square().mean(-1), norm

    def _fit_actor(self, gradient: Tensor, tape: Tape, norm: Tensor) -> Tensor:
        """Take a step of the actor, given the gradient of the loss by its outputs, (n, out).

        Returns:
            Norm of the gradient, added to those before, without which the step is skipped.
        """
        self.policy.actor.net.backward(gradient.unsqueeze(0), tape)
        norm = norm + _norm(self._actor_parameters)
        _step(self.policy_optim._optim, norm)
        return norm

    def _update_targets(self, norm: Tensor) -> None:
        slow, fast = self._lagged
        weight = self.tau * (1 - skipped(norm))
        torch._foreach_lerp_(slow, fast, cast(Any, [weight] * len(slow)))

    @cached_property
    def _lagged(self) -> tuple[list[Tensor], list[Tensor]]:
        """Parameters of the target networks, and those that they follow."""
        pairs = self._lagged_networks._lagged_network_pairs
        slow: list[Tensor] = [p for pair in pairs for p in pair.target.parameters()]
        return slow, [p for pair in pairs for p in pair.source.parameters()]


class StackedSAC(StackedActorCritic):
    """Soft actor-critic (Haarnoja et al. 2018, arXiv 1812.05905).

    Args:
        alpha: Entropy coefficient, fixed or tuned with a `FusedAdam`.
        **settings: As of `StackedActorCritic`; the policy's actor is a `GaussianActor`.
    """

    def __init__(self, *, alpha: float | AutoAlpha, **settings: Any) -> None:
        super().__init__(**settings)
        self.alpha = alpha if isinstance(alpha, AutoAlpha) else FixedAlpha(alpha)

    def _adams(self) -> list[torch.optim.Optimizer]:
        own = [self.alpha._optim] if isinstance(self.alpha, AutoAlpha) else []
        return [*super()._adams(), *own]

    def _noise(self, like: Tensor) -> tuple[Tensor, ...]:
        return torch.randn_like(like), torch.randn_like(like)  # tianshou draws that of the next actions first

    def _step_all(
        self, obs: Tensor, act: Tensor, rew: Tensor, obs_next: Tensor, discount: Tensor, *noise: Tensor
    ) -> dict[str, float | Tensor]:
        n = len(rew)
        # The actor does not change before its own step, so that one pass serves both observations.
        outputs, tape = self.policy.actor.net.run(torch.cat([obs, obs_next]))
        drawn = _Squashed(outputs[0], torch.cat([noise[1], noise[0]]))
        (action, action_next), (log_prob, log_prob_next) = drawn.action.chunk(2), drawn.log_prob.chunk(2)
        alpha = self._alpha()

        value = self._slow_value(obs_next, action_next) - alpha * log_prob_next
        target = rew + discount * value
        losses, norm = self._fit_critics(obs, act, target)

        values, critic_tape = self.critic.net.run(torch.cat([obs, action], -1))
        loss = (alpha * log_prob - self.value_of(values)[:, 0]).mean()
        share = (1 + self.pessimism) / 2  # of the lower value
        by_value = torch.full_like(values, (share - 1) / n).scatter_(0, values.argmin(0, keepdim=True), -share / n)
        by_action = self.critic.net.input_gradient(by_value, critic_tape, obs.shape[1]).sum(0)
        norm = self._fit_actor(drawn.gradient(by_action, alpha / n), tape.rows(n), norm)

        metrics = {"actor_loss": loss, "critic1_loss": losses[0], "critic2_loss": losses[1], "target": target.mean()}
        if isinstance(self.alpha, AutoAlpha):
            log_alpha = self.alpha._log_alpha
            excess = -log_prob.mean() - self.alpha._target_entropy
            log_alpha.grad = excess
            metrics["alpha_loss"] = log_alpha * excess
            norm = norm + excess.abs()
            _step(self.alpha._optim, norm)
        self._update_targets(norm)
        return metrics | {"alpha": self._alpha(), "gradient_norm": norm}

    def _alpha(self) -> Tensor | float:
        return self.alpha._log_alpha.detach().exp() if isinstance(self.alpha, AutoAlpha) else self.alpha.value

    def _target_q_compute_value(self, obs_batch: Batch, act_batch: Any) -> Tensor:
        log_prob: Tensor = act_batch.log_prob.flatten()
        return super()._target_q_compute_value(obs_batch, act_batch) - self._alpha() * log_prob


class _Squashed:
    """Actions drawn from squashed Gaussians, and the way back to the outputs of the actor.

    Args:
        outputs: Mean and logarithm of the standard deviation before squashing, (n, 2A).
        noise: Standard normal noise, (n, A).
    """

    def __init__(self, outputs: Tensor, noise: Tensor) -> None:
        mean, self._log_std = outputs.chunk(2, -1)
        self._bounded = self._log_std.clamp(-20, 2)
        self._offset = self._bounded.exp() * noise
        self.action = (mean + self._offset).tanh()
        """Shape (n, A)."""
        self._slope = 1 - self.action.square()
        density = 0.5 * noise.square() + self._bounded + (self._slope + _EPS).log()
        self.log_prob = -density.sum(-1) - 0.5 * math.log(2 * math.pi) * mean.shape[1]
        """Log-probability of the action, (n,)."""

    def gradient(self, by_action: Tensor, by_log_prob: Tensor | float) -> Tensor:
        """Gradient of a loss of the first m actions by their outputs, (m, 2A).

        Args:
            by_action: Gradient by the action at a fixed log-probability, (m, A).
            by_log_prob: Gradient by each log-probability, a scalar.
        """
        m = len(by_action)
        slope, offset, inside = self._slope[:m], self._offset[:m], self._bounded[:m] == self._log_std[:m]
        by_action = by_action + 2 * by_log_prob * self.action[:m] / (slope + _EPS)
        by_mean = by_action * slope
        by_log_std = (by_mean * offset - by_log_prob) * inside
        return torch.cat([by_mean, by_log_std], -1)


class StackedTD3(StackedActorCritic):
    """Twin delayed deterministic policy gradients (Fujimoto et al. 2018, arXiv 1802.09477).

    Args:
        policy_noise: Standard deviation of the noise of the target's actions.
        noise_clip: Largest noise of the target's actions.
        update_actor_freq: Updates of the critics for each of the actor.
        **settings: As of `StackedActorCritic`; the policy's actor is a `DeterministicActor`.
    """

    _last: Tensor

    def __init__(self, *, policy_noise: float, noise_clip: float, update_actor_freq: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.actor_old = self._add_lagged_network(self.policy.actor)
        self.policy_noise, self.noise_clip, self.update_actor_freq = policy_noise, noise_clip, update_actor_freq
        self._cnt = 0
        self.register_buffer("_last", torch.zeros((), device=self._critic_parameters[0].device))

    def learn(self, batch: Batch) -> dict[str, float | Tensor]:
        metrics = super().learn(batch)
        self._cnt += 1
        return metrics

    def _variant(self) -> Hashable:
        return self._cnt % self.update_actor_freq == 0

    def _noise(self, like: Tensor) -> tuple[Tensor, ...]:
        return (torch.randn_like(like),)

    def _step_all(
        self, obs: Tensor, act: Tensor, rew: Tensor, obs_next: Tensor, discount: Tensor, *noise: Tensor
    ) -> dict[str, float | Tensor]:
        value = self._slow_value(obs_next, self._next_action(obs_next, *noise))
        target = rew + discount * value
        losses, norm = self._fit_critics(obs, act, target)
        if self._variant():
            norm = self._update_actor(obs, norm)
            self._update_targets(norm)
        return {
            "actor_loss": self._last.clone(),
            "critic1_loss": losses[0],
            "critic2_loss": losses[1],
            "target": target.mean(),
            "gradient_norm": norm,
        }

    def _update_actor(self, obs: Tensor, norm: Tensor) -> Tensor:
        """Take a step towards actions of a higher value by the first critic."""
        outputs, tape = self.policy.actor.net.run(obs)
        action = outputs[0].tanh()
        values, critic_tape = self.critic.net.run(torch.cat([obs, action], -1), n_members=1)
        by_value = torch.full_like(values, -1 / len(obs))
        by_action = self.critic.net.input_gradient(by_value, critic_tape, obs.shape[1])[0]
        norm = self._fit_actor(by_action * (1 - action.square()), tape, norm)
        self._last.copy_(torch.where(norm.isfinite(), -values.mean(), self._last))
        return norm

    def _next_action(self, obs_next: Tensor, noise: Tensor) -> Tensor:
        action: Tensor = self.actor_old.module(obs_next)[0]
        noise = noise * self.policy_noise
        # The noise may leave the space; the paper clips it, tianshou does not.
        return (action + noise.clamp(-self.noise_clip, self.noise_clip)).clamp(-1, 1)

    def _target_q_compute_action(self, obs_batch: Batch) -> Any:
        obs_next = cast(Tensor, obs_batch.obs)
        like = obs_next.new_empty(len(obs_next), self.policy.action_space.shape[0])
        return Batch(act=self._next_action(obs_next, *self._noise(like)))


_ROWS = ("obs", "act", "rew", "obs_next", "discount")


def _norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Sum of the norms of gradients, also not finite where finite numbers are too large to be squared, as Adam does."""
    return torch.stack(torch._foreach_norm([cast(Tensor, p.grad) for p in parameters])).sum()


def _step(optimizer: torch.optim.Optimizer, norm: Tensor) -> None:
    """Take a step, unless the norm of the gradients is not finite."""
    assert isinstance(optimizer, FusedAdam)
    optimizer.step_unless(skipped(norm))
