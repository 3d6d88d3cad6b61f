"""Encoders: flat observations to the state that a model predicts and the context that stays constant."""

from collections.abc import Sequence

import torch
from gymnasium import spaces
from torch import Tensor, nn

from layeredrl.checks import require_count
from layeredrl.models.nets import InputStandardizer
from layeredrl.task import GOAL_KEY, TaskSpec


class Encoder(nn.Module):
    """Splits a flat observation into state, which the dynamics predicts, and context, constant in an episode.

    The context is the goal that the environment asks for, if the observation has one; the state is all the rest.

    Args:
        task: Gives the parts of the observation.
        parts: Names of the parts of the observation that make the state, in the order of the space; None for all
            but the goal.

    Attributes:
        state_dim: Width S of the state.
        context_dim: Width C of the context.
        learned: True if the encoder has parameters, so that the state moves while they learn.
    """

    state_index: Tensor
    context_index: Tensor
    learned = False

    def __init__(self, task: TaskSpec, parts: Sequence[str] | None = None) -> None:
        super().__init__()
        slices = task.slices
        kept = [key for key in slices if key != GOAL_KEY] if parts is None else list(parts)
        if not kept or not set(kept) <= slices.keys() - {GOAL_KEY}:
            raise ValueError(f"parts is {kept}, expected some of {', '.join(k for k in slices if k != GOAL_KEY)}")
        context = [i for key in slices if key == GOAL_KEY for i in range(slices[key].start, slices[key].stop)]
        state = [i for key in slices if key in kept for i in range(slices[key].start, slices[key].stop)]
        self.register_buffer("state_index", torch.tensor(state, dtype=torch.int64), persistent=False)
        self.register_buffer("context_index", torch.tensor(context, dtype=torch.int64), persistent=False)
        self.state_dim, self.context_dim = len(state), len(context)
        self.observation_dim = task.observation_dim

    @property
    def state_space(self) -> spaces.Box:
        """Box of shape (S,)."""
        return spaces.Box(-float("inf"), float("inf"), (self.state_dim,))

    @property
    def context_space(self) -> spaces.Box:
        """Box of shape (C,)."""
        return spaces.Box(-float("inf"), float("inf"), (self.context_dim,))

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Observations (..., O) to state (..., S) and context (..., C), without gradients for parameters."""
        return self.with_gradients(obs)

    def with_gradients(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """The same, with gradients for the parameters of an encoder that learns."""
        return obs[..., self.state_index], obs[..., self.context_index]

    def observation(self, state: Tensor, context: Tensor) -> Tensor:
        """State (..., S) and context (..., C) back to observations (..., O).

        Raises:
            ValueError: The state and the context are not all of the observation.
        """
        if self.learned or self.state_dim + self.context_dim != self.observation_dim:
            raise ValueError(
                f"the state and the context have {self.state_dim} and {self.context_dim} dimensions of the "
                f"observation, expected all {self.observation_dim}"
            )
        obs = state.new_empty(*state.shape[:-1], self.observation_dim)
        obs[..., self.state_index], obs[..., self.context_index] = state, context
        return obs

    def fit(self, obs: Tensor, obs_next: Tensor) -> None:
        """Take statistics of transitions (N, O) before learning begins; an encoder without any ignores them."""

    def normalize(self) -> None:
        """Restore constraints on the parameters after a gradient step."""

    def check(self, task: TaskSpec) -> None:
        """Raise if what is known of the task cannot be applied to the encoder's states."""

    def begins_like(self, other: "Encoder") -> bool:
        """Return True if the state equals the first dimensions of another encoder's state."""
        n = self.state_dim
        return n <= other.state_dim and torch.equal(self.state_index, other.state_index[:n])


class LearnedEncoder(Encoder):
    """Linear maps from flat observations to state and context, learned from the reward.

    The state is a map of those dimensions of the observation that ever change within an episode, the context one of
    the others; both are without bias. As in the released library of SPlaTES (Gürtler and Martius, RLC 2025), but for
    the rows of the maps, which have length one: nothing else determines their scale, because a reward network can
    undo any.

    `forward` returns tensors without gradients, so that only callers of `with_gradients` train the encoder.

    Args:
        task: Gives the width of observations.
        latent_dim: Width S of the state.
        context_dim: Width C of the context, which may be zero.
        standardize: If True, observations are standardised first, with the statistics of the first data.

    Attributes:
        changes: True for dimensions of the observation that change within an episode, (O,); all of them until `fit`.
    """

    changes: Tensor
    fitted: Tensor
    learned = True

    def __init__(self, task: TaskSpec, latent_dim: int, context_dim: int, *, standardize: bool = True) -> None:
        super().__init__(task)
        width = task.observation_dim
        for name, dim, lowest in (("latent_dim", latent_dim, 1), ("context_dim", context_dim, 0)):
            require_count(name, dim, minimum=lowest)
            if dim > width:
                raise ValueError(f"{name} is {dim}, expected at most the observation's {width}")
        self.state_dim, self.context_dim, self.standardize = latent_dim, context_dim, standardize
        self.standardizer = InputStandardizer(width)
        self.to_state = nn.Parameter(nn.init.orthogonal_(torch.empty(latent_dim, width)))
        self.to_context = nn.Parameter(torch.zeros(context_dim, width))
        if context_dim:
            nn.init.orthogonal_(self.to_context)
        self.register_buffer("changes", torch.ones(width, dtype=torch.bool))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))
        self.normalize()

    @torch.no_grad()
    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        return self.with_gradients(obs)

    def with_gradients(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        obs = self.standardizer(obs)
        return (obs * self.changes) @ self.to_state.mT, (obs * ~self.changes) @ self.to_context.mT

    @torch.no_grad()
    def fit(self, obs: Tensor, obs_next: Tensor) -> None:
        """Find the dimensions that change within an episode and, the first time, the statistics of observations.

        A dimension that has once changed counts as changing from then on.

        Args:
            obs: First observations of transitions, (N, O).
            obs_next: Next observations in the same episode, (N, O).
        """
        changes = (obs != obs_next).any(0)
        if self.fitted:
            self.changes.logical_or_(changes)
        else:
            self.changes.copy_(changes)
            if self.standardize:
                self.standardizer.fit(obs_next)
            self.fitted.fill_(True)
        self.normalize()

    @torch.no_grad()
    def normalize(self) -> None:
        """Give the rows of both maps length one, and zeros for the dimensions that they do not use."""
        for weight, seen in ((self.to_state, self.changes), (self.to_context, ~self.changes)):
            weight.mul_(seen)
            weight.div_(weight.norm(dim=1, keepdim=True).clamp(min=1e-12))

    def check(self, task: TaskSpec) -> None:
        for name in ("reward", "termination"):
            if getattr(task, name) is not None:
                raise ValueError(f"the task's {name} is known, of states that a LearnedEncoder changes; expected None")

    def begins_like(self, other: Encoder) -> bool:
        return False
