"""A latent world model: encoder, latent dynamics, reward, termination, critics and policy in one.

It is that of TD-MPC2 (Hansen et al. 2024, arXiv 2310.16828), and answers the questions of any world model. Deviation:
the termination is learned as a probability, by which planning weights what follows.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from tianshou.data import Batch
from torch import Tensor, nn

from layeredrl import action_spaces
from layeredrl.checks import require_choice, require_counts, require_dtype, require_number
from layeredrl.models.model import Model
from layeredrl.models.rollout import TOO_FAR
from layeredrl.task import TaskSpec
from layeredrl.world_model.encoders import Encoder
from layeredrl.world_model.latent_nets import (
    Activation,
    Chain,
    LatentCritics,
    LatentPolicy,
    TwoHot,
    normed_mlp,
    simplicial,
)
from layeredrl.world_model.objective import Objective
from layeredrl.world_model.world_model import WorldModel

Size = Literal["tiny", "small", "released"]

MakeEncoder = Callable[[int, int], nn.Module]
"""Makes a network from flat observations (n, O) to (n, S), given O and S; its outputs are normalised."""


@dataclass(frozen=True)
class LatentConfig:
    """Networks of a latent world model; the defaults are those of TD-MPC2 with 5 million parameters."""

    latent_dim: int = 512
    """Width S of the latent state, a multiple of `group`."""
    encoder_hidden: tuple[int, ...] = (256,)
    """Widths of the hidden layers of the encoder."""
    hidden: tuple[int, ...] = (512, 512)
    """Widths of the hidden layers of all other networks."""
    n_critics: int = 5
    """Number of critics, of which two are drawn for every target and every update of the policy."""
    group: int = 8
    """Dimensions of each simplex of the latent state, which sum to one."""
    n_bins: int = 101
    """Bins of rewards and values."""
    limit: float = 10.0
    """The bins span [-limit, limit] in symlog space, sign(x) log(1 + abs(x))."""
    activation: Activation = "mish"
    """Activation; on a CPU, silu takes a third of the time of mish."""
    dropout: float = 0.01
    """Probability of dropping an output of the critics' first layer; takes long on a CPU."""
    terminations: bool = False
    """Learn terminations, where the task ends episodes."""
    discount: float = 0.99
    """Discount per step."""

    def __post_init__(self) -> None:
        require_counts(self, latent_dim=1, n_critics=2, group=2, n_bins=2)
        for name in ("encoder_hidden", "hidden"):
            if min(getattr(self, name), default=1) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected widths of at least 1")
        require_choice("activation", self.activation, get_args(Activation))
        require_number("discount", self.discount, 0, 1)
        require_number("dropout", self.dropout, 0, 0.99)
        require_number("limit", self.limit, 0, float("inf"), open_low=True)
        if self.latent_dim % self.group:
            raise ValueError(f"latent_dim is {self.latent_dim}, expected a multiple of group, which is {self.group}")

    def make_encoder(self, n_observed: int, width: int) -> nn.Module:
        """The perceptron from flat observations (n, O) to (n, S), a `MakeEncoder`."""
        return Chain(*normed_mlp([n_observed, *self.encoder_hidden, width], self.activation))

    @classmethod
    def of(cls, size: Size, **others: Any) -> "LatentConfig":
        """Settings of a size: released, or fewer parameters for a CPU."""
        require_choice("size", size, tuple(SIZES))
        return cls(**{**SIZES[size], **others})


SIZES: dict[Size, dict[str, Any]] = {
    "tiny": {
        "latent_dim": 64,
        "encoder_hidden": (128,),
        "hidden": (128, 128),
        "n_critics": 2,
        "activation": "silu",
        "dropout": 0.0,
    },
    "small": {
        "latent_dim": 128,
        "encoder_hidden": (256,),
        "hidden": (256, 256),
        "activation": "silu",
        "dropout": 0.0,
    },
    "released": {},
}


class LatentEncoder(Encoder):
    """Encodes the whole flat observation, a goal included, as one latent state; there is no context.

    Args:
        task: Gives the width of observations.
        config: Settings.
        net: Makes the network; None for a perceptron.
    """

    learned = True

    def __init__(self, task: TaskSpec, config: LatentConfig, net: MakeEncoder | None = None) -> None:
        super().__init__(task)
        self.state_dim, self.context_dim = config.latent_dim, 0
        self.net = (net or config.make_encoder)(task.observation_dim, config.latent_dim)
        self.simplex = simplicial(config.latent_dim, config.group)
        parameter = next(self.net.parameters(), torch.empty(0))
        self.simplex.to(parameter.device)
        try:
            self.eval()(torch.zeros(1, task.observation_dim, device=parameter.device))
        except RuntimeError as error:  # of a layer, which names neither
            raise ValueError(
                f"the encoder fails on observations of shape (1, {task.observation_dim}): {error}"
            ) from error

    @torch.no_grad()
    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        return self.with_gradients(obs)

    def with_gradients(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        rows = obs.reshape(-1, obs.shape[-1])
        out = self.net(rows)
        if not isinstance(out, Tensor):
            raise TypeError(f"the encoder returned a {type(out).__name__}, expected a tensor")
        if out.shape != (len(rows), self.state_dim):
            raise ValueError(
                f"the encoder returned shape {tuple(out.shape)} for {tuple(rows.shape)}, "
                f"expected {(len(rows), self.state_dim)}"
            )
        require_dtype("the encoder's output", out, obs.dtype)
        state: Tensor = self.simplex(out).view(*obs.shape[:-1], self.state_dim)
        return state, obs.new_zeros(*obs.shape[:-1], 0)

    def begins_like(self, other: Encoder) -> bool:
        return False


class LatentDynamics(Model):
    """Deterministic dynamics of the latent state, and the termination that the next one shows.

    Args:
        config: Settings.
        action_dim: Number of actions A.
        device: Device of the parameters.
    """

    def __init__(self, config: LatentConfig, action_dim: int, device: torch.device) -> None:
        super().__init__(device=device)
        width = config.latent_dim
        last = simplicial(width, config.group)
        self.net = Chain(*normed_mlp([width + action_dim, *config.hidden, width], config.activation), *last)
        self.ends = (
            normed_mlp([width, *config.hidden, 1], config.activation, zero=True) if config.terminations else None
        )
        self.to(device)

    def next(self, state: Tensor, action: Tensor) -> Tensor:
        """Next states (..., S) of states (..., S) and actions (..., A)."""
        after: Tensor = self.net(torch.cat([state, action], -1))
        return after

    def end_logit(self, state: Tensor) -> Tensor:
        """Logit (...) of the probability that the episode ended with arriving at states (..., S)."""
        assert self.ends is not None, "the task never ends episodes"
        logit: Tensor = self.ends(state)
        return logit.squeeze(-1)

    def term_prob(self, state: Tensor) -> Tensor:
        """Probability (...) that the episode ended with arriving at states (..., S)."""
        return state.new_zeros(state.shape[:-1]) if self.ends is None else self.end_logit(state).sigmoid()

    def rollout(
        self,
        initial_state: Tensor,
        context: Tensor,
        actions: Tensor,
        deterministic: bool = False,
        *,
        generator: torch.Generator | None = None,
        statistics: bool = True,
        n_alike: int = 1,
    ) -> Batch:
        """Follow actions; see `Model.rollout`. Nothing is random, and members and particles are one.

        Returns:
            Also `diverged` (B, 1, 1, H), True from where a state is not finite; `state_mean` and `state_std`, zero.
        """
        states = [initial_state]
        for action in actions.unbind(1):
            states.append(self.next(states[-1], action))
        state = torch.stack(states, 1)  # (B, H+1, S)
        after = state[:, 1:]
        result = Batch(
            state=state[:, None, None],
            term_prob=self.term_prob(after)[:, None, None],
            diverged=~(after.abs() < TOO_FAR).all(-1)[:, None, None],
        )
        if statistics:
            result.state_mean, result.state_std = state[:, None], torch.zeros_like(state[:, None])
        return result

    def predict(self, state: Tensor, context: Tensor, action: Tensor, std: Tensor | None = None) -> tuple[Tensor, ...]:
        after = self.next(state, action)
        mean = after[:, None, None]
        spread = torch.zeros_like(mean) if std is None else std.expand_as(mean)
        return mean, mean.new_ones(mean.shape[:-1]), spread, self.term_prob(after)

    def sample(
        self, state: Tensor, context: Tensor, action: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        return self.next(state, action)

    def get_log_prob(
        self, state: Tensor, context: Tensor, action: Tensor, next_state: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Raise NotImplementedError: a deterministic prediction has no density."""
        raise NotImplementedError("the latent dynamics is deterministic, and has no density")

    def get_parameters(self) -> Iterable[Tensor]:
        return self.parameters()

    def loss(self, batch: Batch) -> Tensor:
        """Mean square error of the next latent state; rewards and critics have theirs in `LatentLearner`."""
        error: Tensor = self.next(batch.state, batch.act) - batch.state_next
        return error.square().mean()


class LatentWorldModel(WorldModel):
    """Latent world model with dynamics, reward, termination, critics and policy.

    Args:
        task: The task; its known reward and termination are functions of observations, and learned instead.
        config: Settings of the networks.
        device: Device of the parameters.
        encoder: Makes the network of the encoder; None for a perceptron.

    Attributes:
        reward_logits: Reward of latent states and actions, as bins.
        policy: Policy of latent states.
        critics: Critics of latent states and actions.
        pair: Indices of the two critics whose mean value plans end in, (2,); drawn anew with every update.
    """

    encoder: LatentEncoder
    dynamics: LatentDynamics
    pair: Tensor

    def __init__(
        self, task: TaskSpec, config: LatentConfig, device: torch.device, *, encoder: MakeEncoder | None = None
    ) -> None:
        space = action_spaces.require_unit_box(task.action_space)
        n_actions, width = space.shape[0], config.latent_dim
        super().__init__(
            LatentEncoder(task, config, encoder),
            LatentDynamics(config, n_actions, device),
            replace(task, reward=None, termination=None),
            objective=Objective(width, discount=config.discount, value=self.value),
            reward_hidden=None,
        )
        self.config, joint = config, width + n_actions
        widths = [joint, *config.hidden, config.n_bins]
        self.reward_logits = Chain(*normed_mlp(widths, config.activation, zero=True))
        self.critics = LatentCritics(widths, config.n_critics, config.activation, config.dropout)
        self.policy = LatentPolicy([width, *config.hidden], n_actions, config.activation)
        self.scale = TwoHot(config.n_bins, config.limit)
        self.register_buffer("pair", torch.arange(2))
        self.to(device)

    def reward(self, state: Tensor, context: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """Reward (...) of latent states (..., S) and actions (..., A); context and next state are not used."""
        return self.scale.decode(self.reward_logits(torch.cat([state, action], -1)))

    @torch.no_grad()
    def score_from(
        self,
        state: Tensor,
        context: Tensor,
        actions: Tensor,
        *,
        generator: torch.Generator | None = None,
        common_noise: bool = False,
        exploring: bool = False,
    ) -> Tensor:
        """As `WorldModel.score_from`, without gradients; nothing is random, so that this loop is all of a rollout.

        The first layers' products with the first state, which all candidates of an environment share, are done once.
        """
        n_envs, n_candidates, horizon = actions.shape[:3]
        n, width = n_envs * n_candidates, self.config.latent_dim
        taken = actions.flatten(0, 1).transpose(0, 1)  # (H, E N, A)
        joint = state.new_empty(horizon, n, width + actions.shape[-1])  # from the second state on
        joint[:-1, :, width:] = taken[1:]
        dynamics, rewarded = self.dynamics.net, self.reward_logits
        first = rewarded.enter(state, taken[0])
        joint[0, :, :width] = dynamics.go_on(dynamics.enter(state, taken[0]))
        for before, after in pairwise(joint.unbind()):
            after[:, :width] = dynamics(before)
        hidden = torch.cat([first, rewarded.enter(joint[:-1].flatten(0, 1))])
        rewards, states = self.scale.decode(rewarded.go_on(hidden)).view(horizon, n), joint[..., :width]
        weights = self.objective.discount ** torch.arange(horizon + 1, device=state.device).unsqueeze(1)
        if self.dynamics.ends is not None:  # discounted probability of being alive
            survival = (1 - self.dynamics.term_prob(states)).cumprod(0)
            weights = weights * torch.cat([torch.ones_like(survival[:1]), survival])
        total = (weights[:-1] * rewards).sum(0) + weights[-1] * self.value(states[-1], state[:, :0])
        # A state that is not finite makes the value so, too.
        return total.masked_fill(~total.isfinite(), -torch.inf).view(n_envs, n_candidates)

    def value(self, state: Tensor, context: Tensor) -> Tensor:
        """Value (...) of latent states (..., S): mean of two critics, at the policy's most probable action."""
        rows = state.flatten(0, -2)
        logits = self.critics(torch.cat([rows, self.policy.act(rows)], -1), self.pair)
        return self.scale.decode(logits).mean(0).view(state.shape[:-1])

    def propose(self, obs: Tensor, n_plans: int, horizon: int, generator: torch.Generator) -> Tensor:
        """Follow the policy, with its noise, through the model.

        Args:
            obs: Shape (E, O).
            n_plans: Number K of sequences for each observation.
            horizon: Length H.
            generator: Source of randomness.

        Returns:
            Actions (E, K, H, A).
        """
        state = self.encode(obs)[0].repeat_interleave(n_plans, 0)
        shape, actions = (len(state), action_spaces.width(self.task.action_space)), []
        for step in range(horizon):
            noise = torch.randn(shape, generator=generator, device=state.device)
            actions.append(self.policy.act(state, noise))
            if step < horizon - 1:
                state = self.dynamics.sample(state, state[..., :0], actions[-1])
        return torch.stack(actions, 1).view(-1, n_plans, horizon, shape[1])
