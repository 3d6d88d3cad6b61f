"""Training off-policy algorithms on batches that may have been changed since they were stored.

tianshou itself computes a target from its buffer, whatever the batch says. Here it comes from the batch alone, so that
rewards may be recomputed and commands exchanged at every sampling, and each transition has a discount of its own.
SAC and TD3, as built here, have fast updates of their own; any other algorithm of tianshou is trained by its.
"""

import inspect
from collections.abc import Mapping
from typing import Any, cast

import torch
from tianshou.algorithm.modelfree.ddpg import ActorCriticOffPolicyAlgorithm
from tianshou.algorithm.modelfree.sac import AutoAlpha, SACPolicy
from tianshou.data import Batch
from tianshou.utils.torch_utils import policy_within_training_step
from torch import Tensor

from layeredrl.models.optimizer import restore_optimizer
from layeredrl.off_policy.actor_critic import StackedActorCritic

OffPolicyAlgorithm = ActorCriticOffPolicyAlgorithm[Any, Any]


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
