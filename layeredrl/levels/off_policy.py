"""Training off-policy algorithms on batches that may have been changed since they were stored.

tianshou itself computes a target from its buffer, whatever the batch says. Here it comes from the batch alone, so that
rewards may be recomputed and commands exchanged at every sampling, and each transition has a discount of its own.
SAC and TD3, as built here, have fast updates of their own; any other algorithm of tianshou is trained by its.
"""

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from gymnasium import spaces
from tianshou.algorithm.modelfree.ddpg import ActorCriticOffPolicyAlgorithm
from tianshou.algorithm.modelfree.sac import AutoAlpha, SACPolicy
from tianshou.algorithm.optim import TorchOptimizerFactory
from tianshou.data import Batch
from tianshou.exploration import GaussianNoise
from tianshou.utils.torch_utils import policy_within_training_step
from torch import Tensor

from layeredrl import action_spaces
from layeredrl.checks import require_counts, require_finite_number, require_number
from layeredrl.levels.actor_critic import Critics, StackedActorCritic, StackedSAC, StackedTD3
from layeredrl.levels.actors import DeterministicActor, DeterministicPolicy, GaussianActor, SquashedGaussianPolicy
from layeredrl.levels.stacked_mlp import mlp
from layeredrl.models.fused_adam import FusedAdam
from layeredrl.models.optimizer import restore_optimizer

OffPolicyAlgorithm = ActorCriticOffPolicyAlgorithm[Any, Any]


@dataclass(frozen=True)
class ActorCriticConfig:
    """Settings of both SAC and TD3."""

    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers of all networks."""
    learning_rate: float = 3e-4
    """Learning rate of Adam, for actor and critics."""
    discount: float = 0.99
    """Discount per environment step."""
    tau: float = 0.005
    """Step size of the target networks towards the networks, at every update of the actor."""
    critic_layer_norm: bool = False
    """Layer norm in the critics, before each ReLU: for many updates per transition."""
    pessimism: float = 1.0
    """How far a value lies below the mean of both critics, in halves of their difference: 1 for the lower of them, 0
    for their mean, which suits critics with layer norm (BRO, Nauman et al. 2024, arXiv 2405.16158). TD3's policy goes
    by its first critic alone."""

    def __post_init__(self) -> None:
        if min(self.hidden, default=0) < 1:
            raise ValueError(f"hidden is {self.hidden}, expected at least one width of at least 1")
        require_number("learning_rate", self.learning_rate, 0, math.inf, open_low=True)
        require_number("discount", self.discount, 0, 1)
        require_number("tau", self.tau, 0, 1, open_low=True)
        require_number("pessimism", self.pessimism, 0, 1)

    def _settings(self, n_inputs: int, action_space: spaces.Box, device: torch.device) -> dict[str, Any]:
        """Two independent critics, and the other settings of both algorithms."""
        widths = [n_inputs + action_space.shape[0], *self.hidden, 1]
        critics = Critics([mlp(widths, layer_norm=self.critic_layer_norm) for _ in range(2)])
        return {
            "critics": critics.to(device),
            "optim": self._adam(self.learning_rate, device),
            "tau": self.tau,
            "gamma": self.discount,
            "pessimism": self.pessimism,
        }

    def _adam(self, learning_rate: float, device: torch.device) -> TorchOptimizerFactory:
        return TorchOptimizerFactory(FusedAdam, lr=learning_rate, fused=True, capturable=device.type == "cuda")


@dataclass(frozen=True)
class SACConfig(ActorCriticConfig):
    """Soft actor-critic with a tuned entropy coefficient (Haarnoja et al. 2018, arXiv 1812.05905)."""

    alpha: float | None = None
    """Entropy coefficient; None to tune it."""
    initial_alpha: float = 1.0
    """Initial value of a tuned coefficient."""
    target_entropy: float | None = None
    """Entropy to which alpha is tuned, in nats; None for minus the number of actions A. The entropy of actions in
    [-1, 1] is at most A log 2."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha is not None:
            require_number("alpha", self.alpha, 0, math.inf)
        if self.target_entropy is not None:
            require_finite_number("target_entropy", self.target_entropy)
        require_number("initial_alpha", self.initial_alpha, 0, math.inf, open_low=True)

    def build(self, n_inputs: int, action_space: spaces.Space[Any], device: torch.device) -> OffPolicyAlgorithm:
        """The algorithm, with networks drawn from torch's global generator.

        Args:
            n_inputs: Width of the policy's inputs.
            action_space: A flat Box of [-1, 1].
            device: Device of the networks.
        """
        space = action_spaces.require_unit_box(action_space)
        actor = GaussianActor(mlp([n_inputs, *self.hidden, 2 * space.shape[0]])).to(device)
        alpha: float | AutoAlpha
        if self.alpha is None:
            target, largest = self.target_entropy, space.shape[0] * math.log(2)
            if target is None:
                target = -float(space.shape[0])
            if target >= largest:
                raise ValueError(
                    f"target_entropy is {target}, expected less than {largest:.3f}, the largest entropy of "
                    f"{space.shape[0]} actions in [-1, 1]"
                )
            alpha = AutoAlpha(target, math.log(self.initial_alpha), self._adam(self.learning_rate, device)).to(device)
        else:
            alpha = float(self.alpha)
        policy = SquashedGaussianPolicy(actor=actor, action_space=space)
        return StackedSAC(policy=policy, alpha=alpha, **self._settings(n_inputs, space, device))


@dataclass(frozen=True)
class TD3Config(ActorCriticConfig):
    """Twin delayed deterministic policy gradients (Fujimoto et al. 2018, arXiv 1802.09477)."""

    exploration_noise: float = 0.1
    """Standard deviation of the noise added to actions while exploring."""
    policy_noise: float = 0.2
    """Standard deviation of the noise of the target's actions."""
    noise_clip: float = 0.5
    """Largest noise of the target's actions."""
    actor_every: int = 2
    """Updates of the critics for each of the actor."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("exploration_noise", "policy_noise"):
            require_number(name, getattr(self, name), 0, math.inf)
        require_number("noise_clip", self.noise_clip, 0, math.inf, open_low=True)  # tianshou's 0 is no limit at all
        require_counts(self, actor_every=1)

    def build(self, n_inputs: int, action_space: spaces.Space[Any], device: torch.device) -> OffPolicyAlgorithm:
        """The algorithm, as `SACConfig.build` makes it."""
        space = action_spaces.require_unit_box(action_space)
        actor = DeterministicActor(mlp([n_inputs, *self.hidden, space.shape[0]])).to(device)
        noise = GaussianNoise(sigma=self.exploration_noise) if self.exploration_noise else None
        policy = DeterministicPolicy(actor=cast(Any, actor), exploration_noise=noise, action_space=space)
        return StackedTD3(
            policy=policy,
            policy_noise=self.policy_noise,
            noise_clip=self.noise_clip,
            update_actor_freq=self.actor_every,
            **self._settings(n_inputs, space, device),
        )


class NonFiniteGradientError(Exception):
    """The gradient of one of an algorithm's networks is not finite; its parameters are unchanged."""


def check_algorithm(algorithm: OffPolicyAlgorithm) -> None:
    """Raise if an algorithm has settings that are not followed here, or two critics that will always be the same."""
    if algorithm.n_step_return_horizon != 1:
        raise ValueError(
            f"n_step_return_horizon is {algorithm.n_step_return_horizon}, expected 1: targets are of one step"
        )
    if getattr(algorithm.policy, "action_bound_method", None) == "tanh":
        raise ValueError("action_bound_method is 'tanh', expected 'clip' or None: actions are clipped to [-1, 1]")
    critic, twin = algorithm.critic, getattr(algorithm, "critic2", None)
    if twin is None:
        return
    pairs = zip(critic.parameters(), twin.parameters(), strict=False)
    if twin is critic or all(torch.equal(a, b) for a, b in pairs):
        raise ValueError(
            f"critic2 of {type(algorithm).__name__} is a copy of critic, so that both would stay equal: "
            "pass a second critic with parameters of its own"
        )


def guard_gradients(algorithm: OffPolicyAlgorithm) -> None:
    """Let every optimiser of an algorithm refuse gradients that are not finite, by `NonFiniteGradientError`.

    SAC and TD3 of this library skip such steps themselves.
    """
    if isinstance(algorithm, StackedActorCritic):
        return

    def look(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        trained = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not trained:
            return
        norms = torch.stack(torch._foreach_norm([p.grad for p in trained]))
        if not norms.sum().isfinite():  # also where finite numbers are too large to be squared, as Adam does
            names = {id(parameter): name for name, parameter in algorithm.named_parameters()}
            first = trained[int(norms.isfinite().logical_not().int().argmax())]
            raise NonFiniteGradientError(names.get(id(first), "a parameter"))

    for optimizer in optimizers(algorithm).values():
        optimizer.register_step_pre_hook(look)


def update(algorithm: OffPolicyAlgorithm, batch: Batch) -> dict[str, float | Tensor]:
    """Take one update of actor, critics and target networks, which must be in training mode.

    The target is `rew` + `discount` * Q(`obs_next`), with the algorithm's own next action and value.

    Args:
        algorithm: One of this library, or any of tianshou's that has an actor and critics.
        batch: Tensors `obs` and `obs_next` (n, I), inputs of the policy; `act` (n, A); `rew` (n,); `discount` (n,),
            zero without a bootstrap.

    Returns:
        Losses and other metrics by tianshou's names, and `target`, the mean of the targets. Those of this library's
        algorithms stay on the device, and have `gradient_norm`, which is not finite if the update was skipped.

    Raises:
        NonFiniteGradientError: Where the gradients are guarded.
    """
    if isinstance(algorithm, StackedActorCritic):
        metrics: dict[str, float | Tensor] = algorithm.learn(batch)
    else:
        returns = targets(algorithm, batch)
        learned_from = Batch(obs=batch.obs, act=batch.act, returns=returns, info=Batch())
        with policy_within_training_step(algorithm.policy):
            stats = algorithm._update_with_batch(cast(Any, learned_from))
        metrics = {**stats.get_loss_stats_dict(), "target": float(returns.mean())}
    for scheduler in algorithm.lr_schedulers:
        scheduler.step()
    return metrics


@torch.no_grad()
def targets(algorithm: OffPolicyAlgorithm, batch: Batch) -> Tensor:
    """Targets of the critics, (n,); see `update`."""
    following = Batch(obs=batch.obs_next, info=Batch())
    with policy_within_training_step(algorithm.policy):  # else SAC's next action would be its most probable one
        action = algorithm._target_q_compute_action(following)
    if isinstance(action.act, Tensor) and action.act.is_floating_point():
        action.act = action.act.clamp(-1, 1)  # TD3's noise may leave the space; its paper clips it, tianshou does not
    value = algorithm._target_q_compute_value(following, action).flatten()
    return cast(Tensor, batch.rew + batch.discount * value)


def non_finite_gradient(algorithm: OffPolicyAlgorithm) -> str:
    """Name of the first parameter whose gradient in the last update is not finite, or a phrase if there is none."""
    for name, parameter in algorithm.named_parameters():
        if parameter.grad is not None and not parameter.grad.norm().isfinite():
            return name
    return "a parameter"


def log_prob(algorithm: OffPolicyAlgorithm, inputs: Tensor, action: Tensor) -> Tensor:
    """Log density, (n,), of actions (n, A) in (-1, 1) under the policy, for inputs (n, I).

    Raises:
        TypeError: The policy is not that of SAC: a squashed Gaussian.
    """
    if not isinstance(algorithm.policy, SACPolicy):
        raise TypeError(f"the policy is a {type(algorithm.policy).__name__}, expected SAC's: others have no density")
    (mean, std), _ = algorithm.policy.actor(inputs)
    squashed = action.clamp(-1 + 1e-6, 1 - 1e-6)
    normal: Any = torch.distributions.Normal(mean, std, validate_args=mean.device.type == "cpu")  # a GPU would wait
    density: Tensor = normal.log_prob(squashed.atanh()) - (1 - squashed.square()).log()
    return density.sum(-1)


@torch.no_grad()
def drawn_action(algorithm: OffPolicyAlgorithm, inputs: Tensor, generator: torch.Generator) -> Tensor:
    """Actions (n, A) of the policy with its own noise, for inputs (n, I), drawn from a generator.

    That is a sample of a stochastic policy, and the mean of a deterministic one with the noise it explores with.
    """
    outputs = algorithm.policy.actor(inputs)[0]
    stochastic = isinstance(outputs, tuple)  # SAC's, and that of its relatives: a Gaussian before it is squashed
    mean, std = outputs if stochastic else (outputs, _exploration_std(algorithm))
    drawn: Tensor = mean + std * torch.randn(mean.shape, generator=generator, device=mean.device)
    return drawn.tanh() if stochastic else drawn.clamp(-1, 1)


def _exploration_std(algorithm: OffPolicyAlgorithm) -> float:
    return float(getattr(getattr(algorithm.policy, "exploration_noise", None), "_sigma", 0.0))


def action_value(algorithm: OffPolicyAlgorithm, inputs: Tensor, action: Tensor) -> Tensor:
    """Value, (n,), of actions (n, A), for inputs (n, I): the lowest by all critics, or as `pessimism` says."""
    values = algorithm.critic(inputs, action)
    if isinstance(algorithm, StackedActorCritic):
        return algorithm.value_of(values)
    if values.ndim == 3:  # REDQ's, (K, n, 1)
        return cast(Tensor, values.amin(0)).flatten()
    twin = getattr(algorithm, "critic2", None)
    return cast(Tensor, values if twin is None else torch.minimum(values, twin(inputs, action))).flatten()


def optimizers(algorithm: OffPolicyAlgorithm) -> dict[str, torch.optim.Optimizer]:
    """All optimisers of an algorithm; tianshou's own state leaves that of the entropy coefficient out."""
    found = {f"optimizer {i}": wrapper._optim for i, wrapper in enumerate(algorithm._optimizers)}
    alpha = getattr(algorithm, "alpha", None)
    return found | ({"alpha's optimizer": alpha._optim} if isinstance(alpha, AutoAlpha) else {})


def state_dict(algorithm: OffPolicyAlgorithm) -> dict[str, Any]:
    """Everything that training goes on from, as nested dicts of tensors and numbers."""
    return {
        "networks": torch.nn.Module.state_dict(algorithm),
        "optimizers": {name: optimizer.state_dict() for name, optimizer in optimizers(algorithm).items()},
        "schedulers": [scheduler.state_dict() for scheduler in algorithm.lr_schedulers],
        "counters": _counters(algorithm),
    }


def load_state_dict(algorithm: OffPolicyAlgorithm, state: Mapping[str, Any]) -> None:
    """Restore what `state_dict` returned.

    Raises:
        ValueError: It is the state of another algorithm.
    """
    own = optimizers(algorithm)
    if state["optimizers"].keys() != own.keys():
        raise ValueError(f"the state has {', '.join(state['optimizers'])}, expected {', '.join(own)}")
    torch.nn.Module.load_state_dict(algorithm, state["networks"])
    for name, optimizer in own.items():
        restore_optimizer(name, optimizer, state["optimizers"][name])
    for scheduler, saved in zip(algorithm.lr_schedulers, state["schedulers"], strict=True):
        scheduler.load_state_dict(saved)
    for name in _counters(algorithm):
        setattr(algorithm, name, state["counters"][name])


def _counters(algorithm: OffPolicyAlgorithm) -> dict[str, int | float]:
    """Numbers that an algorithm counts and its own state leaves out: when TD3 updates its actor next, for instance."""
    kinds = [kind for kind in type(algorithm).__mro__ if "__init__" in vars(kind)]
    settings = {name for kind in kinds for name in inspect.signature(vars(kind)["__init__"]).parameters}
    numbers = {name: value for name, value in vars(algorithm).items() if type(value) in (int, float)}
    return {name: value for name, value in numbers.items() if name not in settings}
