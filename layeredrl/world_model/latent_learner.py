"""Learns a latent world model jointly on subsequences (TD-MPC2, Hansen et al. 2024, arXiv 2310.16828, section 3)."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from tianshou.data import Batch
from torch import Tensor, nn

from layeredrl.checks import require_counts, require_number
from layeredrl.models.fused_adam import FusedAdam, skipped
from layeredrl.models.optimizer import restore_optimizer
from layeredrl.randomness import derive_seed, generator_state, restore_generator
from layeredrl.world_model.latent import LatentWorldModel


@dataclass(frozen=True)
class LatentLearningConfig:
    """When and how a latent world model learns; the defaults are TD-MPC2's."""

    n_random_steps: int = 1000
    """Environment steps with random actions before the first update."""
    persistence: float = 0.0
    """Probability with which a random action is repeated in the next decision. Above 0, each dimension of a random
    action is at one of its bounds: such actions lead farther than uniform ones, which cancel each other."""
    first_updates: int | None = None
    """Number of updates when the random steps end; None for one for each transition."""
    updates_per_transition: float = 1.0
    """Number of updates for each later transition."""
    replay_size: int = 1_000_000
    """Number of transitions kept, all environments together."""
    report_every: int = 1000
    """Environment steps between two reports of metrics."""
    max_failed_plans: int = 10
    """Largest number of plans between two reports that may fail while exploring; random actions replace them."""
    max_skipped_share: float = 0.1
    """Share of updates between two reports that may be skipped because a gradient is not finite; more is an error."""
    horizon: int = 3
    """Transitions of a subsequence."""
    batch_size: int = 256
    """Subsequences of an update."""
    rho: float = 0.5
    """Step t of a subsequence has weight rho^t in the losses, but in that of the termination."""
    consistency: float = 20.0
    """Weight of the squared error of predicted latent states."""
    reward: float = 0.1
    """Weight of the reward's cross-entropy."""
    value: float = 0.1
    """Weight of the critics' cross-entropy."""
    termination: float = 1.0
    """Weight of the termination's cross-entropy."""
    learning_rate: float = 3e-4
    """Learning rate of Adam."""
    encoder_rate: float = 0.3
    """Factor of the encoder's learning rate."""
    entropy: float = 1e-4
    """Weight of the policy's entropy, multiplied by the number of action dimensions."""
    tau: float = 0.01
    """Step size of the target critics, and of the scale of values."""
    max_norm: float = 20.0
    """Largest norm of a gradient."""

    def __post_init__(self) -> None:
        require_counts(self, n_random_steps=1, replay_size=1, report_every=1, horizon=1, batch_size=1)
        require_counts(self, max_failed_plans=0)
        if self.first_updates is not None:
            require_counts(self, first_updates=0)
        require_number("updates_per_transition", self.updates_per_transition, 0, math.inf)
        require_number("max_skipped_share", self.max_skipped_share, 0, 1)
        for name in ("learning_rate", "encoder_rate", "max_norm"):
            require_number(name, getattr(self, name), 0, math.inf, open_low=True)
        for name in ("consistency", "reward", "value", "termination", "entropy"):
            require_number(name, getattr(self, name), 0, math.inf)
        require_number("persistence", self.persistence, 0, 1)
        require_number("rho", self.rho, 0, 1, open_low=True)
        require_number("tau", self.tau, 0, 1, open_low=True)


class LatentLearner:
    """Takes updates of a latent world model, without synchronising with the device.

    Args:
        world: The world model.
        config: Settings.
        seed: Seed of the policy's noise and of the pairs of critics; dropout draws from torch's global generator.

    Attributes:
        value_scale: Running distance between the 5th and 95th percentile of values, at least 1, by which the policy's
            values are divided.
    """

    def __init__(self, world: LatentWorldModel, config: LatentLearningConfig, *, seed: int = 0) -> None:
        self.world, self.config = world, config
        self.target = copy.deepcopy(world.critics).requires_grad_(False).eval()
        self._networks = nn.ModuleDict({"world": world, "target": self.target})
        self.value_scale = torch.ones((), device=world.dynamics.device)
        encoder = [p for p in world.encoder.parameters() if p.requires_grad]  # a person's own may be frozen
        others = [p for part in (world.dynamics, world.reward_logits, world.critics) for p in part.parameters()]
        rate, fast = config.learning_rate, world.dynamics.device.type == "cuda"
        groups = [{"params": encoder, "lr": rate * config.encoder_rate}, {"params": others, "lr": rate}]
        self.model_optimizer = FusedAdam(groups, fused=True, capturable=fast)
        self.policy_optimizer = FusedAdam(world.policy.parameters(), lr=rate, eps=1e-5, fused=True, capturable=fast)
        self._learned, self._policy = [*encoder, *others], [*world.policy.parameters()]
        device = world.dynamics.device
        self._percentiles = torch.tensor([0.05, 0.95], device=device)
        self._generator = torch.Generator(device).manual_seed(derive_seed(seed, "latent learner"))

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Take one update of all networks.

        Args:
            batch: Subsequences of H transitions: `obs`, `obs_next` (H, n, O), `act` (H, n, A), `rew`, `terminated` and
                `valid` (H, n), which is False beyond the end of an episode.

        Returns:
            Losses and other metrics, scalars on the device. `skipped` is 1 if a gradient was not finite, else 0:
            its networks did not change.
        """
        world = self.world
        world.critics.train()
        states, metrics, norm = self._update_model(batch)
        world.critics.eval()
        policy_metrics, policy_norm = self._update_policy(states, batch.valid & ~batch.terminated)
        self._update_target(norm)
        with torch.no_grad():
            world.pair.copy_(self._pair())
        return metrics | policy_metrics | {"gradient_norm": norm, "skipped": skipped(norm + policy_norm)}

    def _update_model(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Returns the latent states (H + 1, n, S) that were rolled out, metrics, and the norm of the gradient."""
        world, config = self.world, self.config
        with torch.no_grad():
            observed = world.encoder(batch.obs_next)[0]
            target = self._td_target(observed, batch)
        weight = self._weights(batch.valid)
        world.encoder.train()
        states = [world.encoder.with_gradients(batch.obs[0])[0]]
        world.encoder.eval()
        for action in batch.act.unbind(0):
            states.append(world.dynamics.next(states[-1], action))
        before, after = torch.stack(states[:-1]), torch.stack(states[1:])
        inputs = torch.cat([before, batch.act], -1)
        logits = world.critics(inputs.flatten(0, 1))
        losses = {
            "consistency": (after - observed).square().mean(-1),
            "reward": world.scale.loss(world.reward_logits(inputs), batch.rew),
            "value": world.scale.loss(logits, target.flatten().expand(len(logits), -1)).mean(0).view_as(target),
        }
        means = {name: (weight * loss).sum() for name, loss in losses.items()}
        if world.dynamics.ends is not None:
            logit, ended = world.dynamics.end_logit(after), batch.terminated.float()
            loss = F.binary_cross_entropy_with_logits(logit, ended, reduction="none")
            means["termination"] = (batch.valid * loss).sum() / batch.valid.sum()
        total = torch.stack([getattr(config, name) * loss for name, loss in means.items()]).sum()
        norm = self._step(total, self.model_optimizer, self._learned)
        with torch.no_grad():
            metrics = {f"{name}_loss": means[name] / weight.sum() for name in losses}
            metrics["target"] = (batch.valid * target).sum() / batch.valid.sum()
            if "termination" in means:
                metrics["termination_loss"] = means["termination"].detach()
        return torch.stack(states).detach(), metrics, norm

    def _td_target(self, observed: Tensor, batch: Batch) -> Tensor:
        """Targets (H, n) of the critics, given the encoded next observations (H, n, S)."""
        noise = self._noise(*batch.act.shape)
        inputs = torch.cat([observed, self.world.policy.act(observed, noise)], -1).flatten(0, 1)
        values = self.world.scale.decode(self.target(inputs, self._pair())).amin(0).view_as(batch.rew)
        return cast(Tensor, batch.rew + self.world.config.discount * ~batch.terminated * values)

    def _update_policy(self, states: Tensor, alive: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Update the policy at latent states (H + 1, n, S), where the episode goes on after a transition (H, n)."""
        world, config = self.world, self.config
        n_actions = world.policy.n_actions
        action, log_prob = world.policy(states, self._noise(*states.shape[:-1], n_actions))
        inputs = torch.cat([states, action], -1).flatten(0, 1)
        values = world.scale.decode(world.critics(inputs, self._pair())).mean(0).view_as(log_prob)
        with torch.no_grad():
            low, high = values[0].quantile(self._percentiles).unbind()
            spread = (high - low).clamp(min=1)
            self.value_scale.lerp_(torch.where(spread.isfinite(), spread, self.value_scale), config.tau)
        gain = values / self.value_scale - config.entropy * n_actions * log_prob
        alive = torch.cat([torch.ones_like(alive[:1]), alive])
        loss = -(self._weights(alive) * gain).sum()
        norm = self._step(loss, self.policy_optimizer, self._policy)
        entropy = -(alive * log_prob).sum() / alive.sum()
        metrics = {"policy_loss": loss, "entropy": entropy, "value_scale": self.value_scale}
        return {name: value.detach().clone() for name, value in metrics.items()}, norm

    def _weights(self, valid: Tensor) -> Tensor:
        """Weights (H, n) of the steps of subsequences: rho to the power of the step, over the number of valid ones."""
        powers = self.config.rho ** torch.arange(len(valid), dtype=torch.float32, device=valid.device)
        return powers.unsqueeze(-1) * valid / valid.sum()

    def _step(self, loss: Tensor, optimizer: FusedAdam, parameters: Sequence[nn.Parameter]) -> Tensor:
        """Take a step with a clipped gradient, none where it is not finite; returns its norm."""
        gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)  # an encoder may not use all
        with torch.no_grad():
            norm: Tensor = torch.stack(torch._foreach_norm(gradients)).norm()
            shrunk = (self.config.max_norm / norm.clamp(min=1e-6)).clamp(max=1)
            torch._foreach_mul_(gradients, shrunk)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step_unless(skipped(norm))
        return norm

    @torch.no_grad()
    def _update_target(self, norm: Tensor) -> None:
        rate = self.config.tau * (1 - skipped(norm))
        slow: list[Tensor] = [*self.target.parameters()]
        fast: list[Tensor] = [*self.world.critics.parameters()]
        torch._foreach_lerp_(slow, fast, cast(Any, [rate] * len(slow)))

    def _pair(self) -> Tensor:
        """Indices (2,) of two different critics."""
        device = self._generator.device
        return torch.randperm(self.world.critics.n_critics, generator=self._generator, device=device)[:2]

    def _noise(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator, device=self._generator.device)

    def state_dict(self) -> dict[str, Any]:
        """Everything that learning goes on from, the world model included."""
        return {
            "networks": self._networks.state_dict(),
            "value_scale": self.value_scale,
            "model_optimizer": self.model_optimizer.state_dict(),
            "policy_optimizer": self.policy_optimizer.state_dict(),
            **generator_state(self._generator),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        self._networks.load_state_dict(state["networks"])
        self.value_scale.copy_(state["value_scale"])
        for name in ("model_optimizer", "policy_optimizer"):
            restore_optimizer(name, getattr(self, name), state[name])
        restore_generator(self._generator, state)
