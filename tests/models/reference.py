"""The specification in the plainest torch: no batching over members, everything spelled out, in float64."""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from tianshou.data import Batch
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from layeredrl.models import ProbabilisticEnsemble
from tests.models.networks import LinearNet, Members, random_values

# All different, so that a wrong broadcast fails: states, contexts, actions, modes, members.
S, C, A, K, M = 4, 1, 3, 2, 5


def box(width: int, bound: float = 1.0) -> Box:
    return Box(-bound, bound, (width,), np.float32)


def linear_nets(n_models: int = M, n_modes: int = K, context_dim: int = C) -> list[LinearNet]:
    return [LinearNet(S, context_dim, A, n_modes, seed=10 * i) for i in range(n_models)]


def make_model(nets: Sequence[nn.Module] | None = None, **settings) -> ProbabilisticEnsemble:
    """An ensemble, in evaluation mode, of exactly these networks."""
    nets = linear_nets() if nets is None else nets
    settings = {"n_models": len(nets), "n_modes": K, "normalize_targets": False} | settings
    state_space = settings.pop("state_space", box(S, 10.0))
    context_space = settings.pop("context_space", box(C))
    action_space = settings.pop("action_space", box(A))
    return ProbabilisticEnsemble(state_space, context_space, action_space, Members(nets), **settings).eval()


def inputs(*leading: int, seed: int = 100, context_dim: int = C) -> tuple[Tensor, Tensor, Tensor]:
    """State, context and action with the given leading dimensions."""
    state, context = random_values(seed, *leading, S), random_values(seed + 1, *leading, context_dim)
    return state, context, random_values(seed + 2, *leading, A).clamp(-1, 1)


def make_batch(n: int, seed: int = 200, scale: float = 1.0, **extra: Tensor) -> Batch:
    state, context, action = inputs(n, seed=seed)
    state_next = state + scale * random_values(seed + 3, n, S)
    terminated = (random_values(seed + 4, n) > 0).float()
    batch = Batch(state=state, context=context, act=action, state_next=state_next, terminated=terminated)
    for key, value in extra.items():
        batch[key] = value
    return batch


def outputs(net: nn.Module, state: Tensor, context: Tensor, action: Tensor):
    """Mean and std (..., K, S), weights (..., K), termination (...), in float64."""
    net = copy.deepcopy(net).double().eval()
    action = action.double() if action.is_floating_point() else action
    (mean, std), *rest = net(state.double(), context.double(), action)
    if len(rest) == 1:
        mean, std = (x.unsqueeze(-2) if x.ndim == state.ndim else x for x in (mean, std))
        rest = [torch.ones_like(mean[..., 0]), *rest]
    return mean, std, *rest


def mixture(nets: Sequence[nn.Module], state: Tensor, context: Tensor, action: Tensor, std=None, transform=None):
    """The distribution of the predicted quantity, and each member's mean (..., M, S)."""
    parts = [outputs(net, state, context, action) for net in nets]
    means = torch.stack([part[0] for part in parts], dim=-3)
    stds = torch.stack([part[1] for part in parts], dim=-3)
    weights = torch.stack([part[2] for part in parts], dim=-2)
    if transform is not None:
        means = copy.deepcopy(transform).double()(means)
    if std is not None:
        stds = std.double().expand(*state.shape[:-1], means.shape[-1])[..., None, None, :].expand(means.shape)
    joint = (weights / len(nets)).flatten(-2)
    components = Independent(Normal(means.flatten(-3, -2), stds.flatten(-3, -2)), 1)
    return MixtureSameFamily(Categorical(joint), components), (weights.unsqueeze(-1) * means).sum(-2)


def log_prob(nets, state, context, action, next_state, std=None, transform=None, delta=True) -> Tensor:
    """Log density of the next state under the members' average, in float64."""
    target = next_state.double() - state.double() if delta else next_state.double()
    if transform is not None:
        target = copy.deepcopy(transform).double()(target)
    return mixture(nets, state, context, action, std, transform)[0].log_prob(target)


def term_prob(nets, state, context, action) -> Tensor:
    return torch.stack([outputs(net, state, context, action)[3] for net in nets]).mean(0)


def rollout(nets, state: Tensor, context: Tensor, actions: Tensor, scale: float = 1.0, delta: bool = True):
    """Deterministic states (B, M, H + 1, S) and termination (B, M, H), one row, member and step at a time."""
    n_rows, horizon = actions.shape[:2]
    states = torch.empty(n_rows, len(nets), horizon + 1, state.shape[-1], dtype=torch.float64)
    terms = torch.empty(n_rows, len(nets), horizon, dtype=torch.float64)
    for b in range(n_rows):
        for m, net in enumerate(nets):
            current = state[b].double()
            states[b, m, 0] = current
            for t in range(horizon):
                mean, _, weights, term = outputs(net, current[None], context[b : b + 1], actions[b : b + 1, t])
                move = scale * (weights[0, :, None] * mean[0]).sum(0)
                current = current + move if delta else move
                states[b, m, t + 1], terms[b, m, t] = current, term[0]
    return states, terms


def loss(nets, batch: Batch, valid=None, weight=None, scale: Tensor | float = 1.0, delta: bool = True) -> Tensor:
    """Sum over members of the mean over valid rows; float32 parameters of `nets` receive gradients.

    `scale` divides the target (target normalisation).
    """
    total = torch.zeros((), dtype=torch.float64)
    n_rows = len(batch.state)
    valid = range(n_rows) if valid is None else [i for i in range(n_rows) if valid[i]]
    for net in nets:
        for i in valid:
            row = slice(i, i + 1)
            (mean, std), weights, term = net(batch.state[row], batch.context[row], batch.act[row])
            target = (batch.state_next[row] - batch.state[row] if delta else batch.state_next[row]) / scale
            parts = Independent(Normal(mean.double(), std.double()), 1)
            density = MixtureSameFamily(Categorical(weights.double()), parts).log_prob(target.double())
            ended = bool(batch.terminated[i])
            cross_entropy = -torch.log(term.double() if ended else 1 - term.double())
            row_weight = 1.0 if weight is None else float(weight.reshape(-1)[i])
            total = total + row_weight * (cross_entropy - density)[0] / len(valid)
    return total


def discrete(n: int = 3) -> Discrete:
    return Discrete(n)


def running_std(model: ProbabilisticEnsemble) -> Tensor:
    """The running standard deviation (S,), read off the predicted stds of constant networks with std 1."""
    state, context, action = torch.zeros(1, S), torch.zeros(1, C), torch.zeros(1, A)
    return model.predict(state, context, action)[2][0, 0, 0].detach()
