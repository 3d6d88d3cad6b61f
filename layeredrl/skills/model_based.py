"""Skills that are learned together with a model of their outcomes, which a planner then uses."""

import math
import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from gymnasium import spaces
from tianshou.data import Batch
from torch import Tensor

from layeredrl.checks import require_choice, require_count, require_counts, require_number
from layeredrl.models.density import mixture_log_prob
from layeredrl.skills.information import fixed_log_prob, information
from layeredrl.skills.method import AtEnd, LogProb, SkillInputs, SkillMethod
from layeredrl.skills.whitening import Whitening
from layeredrl.storage import Replay
from layeredrl.task import TaskSpec
from layeredrl.world_model import WorldModel
from layeredrl.world_model.config import OnlineLearningConfig, require_span, share_of_span
from layeredrl.world_model.learner import WorldModelLearner

N_SETTLED = 100
"""Updates of the model from which a warning about directions is given: a covariance of few batches is degenerate."""


@dataclass(frozen=True)
class SkillModelConfig(OnlineLearningConfig):
    """When and how the model of skills is learned, and how the intrinsic reward uses it."""

    n_priors: int = 16
    """Number of skills from the prior that the executed one is compared with."""
    std: float = 1.0
    """Standard deviation of outcomes that the reward assumes at first, in whitened coordinates. A wide one rewards
    outcomes beyond what the model expects, so that skills grow until they are as long as possible."""
    final_std: float = 0.5
    """Standard deviation at the end of `std_decay`. A narrow one distinguishes skills by details."""
    std_decay: tuple[int, int] = (30_000, 90_000)
    """Environment steps between which the standard deviation changes linearly."""
    deviation: Literal["fixed", "learned"] = "fixed"
    """`fixed`: use `std`; `learned`: use the model's own standard deviation, floored at `std`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_counts(self, n_priors=1)
        require_choice("deviation", self.deviation, ("fixed", "learned"))
        for name in ("std", "final_std"):
            require_number(name, getattr(self, name), 0, math.inf, open_low=True)
        require_span("std_decay", self.std_decay)


class ModelBasedSkills(SkillMethod):
    """Rewards outcomes by their information about the skill, under the model's prediction of outcomes.

    A subclass says which transitions the model learns (`segments`), and how a step is rewarded (`reward`).

    Args:
        task: The task of the environment.
        world: The world model; its dynamics is an ensemble over skills, and its encoder gives the state that skills
            change. A reward that is not known is learned.
        duration: Duration of a skill in environment steps.
        config: Settings.
        inputs: Inputs of the policy; by default all but the goal, with the displacement since the skill's start.
        hidden: Parts of the observation that the default inputs leave out, as in `SkillInputs`.
        at_end: Continuation of the value after a skill's end; the method's own by default.

    Attributes:
        learner: Learns the world model.
        whitening: Coordinates in which displacements have unit covariance.
    """

    world: WorldModel

    def __init__(
        self,
        task: TaskSpec,
        world: WorldModel,
        duration: int,
        *,
        config: SkillModelConfig | None = None,
        inputs: SkillInputs | None = None,
        hidden: Sequence[str] = (),
        at_end: AtEnd | None = None,
    ) -> None:
        require_count("duration", duration)
        if at_end is not None:
            self.at_end = at_end
        space = world.task.action_space
        if not isinstance(space, spaces.Box | spaces.Discrete):
            raise TypeError(f"the world's action space is {space}, expected skills of a Box or Discrete")
        self.space, self.duration = space, duration
        self.config = SkillModelConfig() if config is None else config
        self.learner = WorldModelLearner(world, self.config, segment_steps=duration)
        self.world, self.dynamics = world, self.learner.dynamics
        if inputs is None:
            inputs = SkillInputs(task, space, duration, encoder=world.encoder, hidden=hidden)
        self._inputs = inputs
        self.n_inputs = inputs.width
        self.whitening = Whitening(world.encoder.state_dim).to(self.dynamics.device)
        self._n_directions = world.encoder.state_dim

    def inputs(self, obs: Tensor, command: Batch | None) -> Tensor:
        return self._inputs(obs, command)

    @abstractmethod
    def segments(self, replay: Replay, n: int, log_prob: LogProb) -> Batch:
        """Draw at most n of the newest transitions at the model's time scale.

        Args:
            replay: Transitions of the skill policy.
            n: Largest number of transitions.
            log_prob: Log-probability of actions under the current policy, for importance weights.

        Returns:
            Tensors on the model's device: `obs` and `obs_next` (n, O), `act` (n, Z), optionally `weight` (n,); and
            `rew` (n,), the sum of the environment's rewards, needed only where the reward is learned.
        """

    @property
    def std(self) -> float:
        """Standard deviation of outcomes that the reward assumes at present."""
        config = self.config
        share = share_of_span(config.std_decay, self.learner.n_total_env_steps)
        return config.std + (config.final_std - config.std) * share

    def log_probs(self, start: Tensor, context: Tensor, skills: Tensor, outcomes: Sequence[Tensor]) -> list[Tensor]:
        """Log densities of outcomes under skills, up to a constant, whitened unless standard deviations are learned.

        Args:
            start: States in which the skills begin, (n, S).
            context: Contexts, (n, C).
            skills: Several skills for each state, (n, L, Z).
            outcomes: States (n, S); the model is queried once for all of them.

        Returns:
            For each of the outcomes, (n, L).
        """
        n, width = skills.shape[:2]
        state, known = (x[:, None].expand(n, width, x.shape[-1]).flatten(0, 1) for x in (start, context))
        with self.dynamics.reduced(len(state)):
            mean, weights, std, _ = self.dynamics.predict(state, known, skills.flatten(0, 1))
        modes = (n, width, -1, start.shape[-1])
        weights = weights.reshape(modes[:3]) / self.dynamics.n_models
        delta = mean - state[:, None, None]
        if self.config.deviation == "learned":  # in the state's units: the change of units is a constant, too
            least = self.std * self.whitening.covariance.diagonal().sqrt()
            delta, std = delta.reshape(modes), std.reshape(modes).maximum(least)
            return [mixture_log_prob((x - start)[:, None], delta, std, weights) for x in outcomes]
        delta = self.whitening(delta).reshape(modes)
        return [fixed_log_prob(self.whitening(x - start)[:, None], delta, weights, self.std) for x in outcomes]

    def potentials(self, start: Tensor, context: Tensor, skill: Tensor, outcomes: Sequence[Tensor]) -> list[Tensor]:
        """Information of each outcome about the skill, (n,) each, compared with the same skills from the prior."""
        others = self.prior(len(skill) * self.config.n_priors, skill.device).view(len(skill), -1, skill.shape[-1])
        skills = torch.cat([skill[:, None], others.to(skill.dtype)], 1)
        return [information(x) for x in self.log_probs(start, context, skills, outcomes)]

    def learn(self, replay: Replay, n_total_env_steps: int, log_prob: LogProb) -> dict[str, float]:
        learner = self.learner
        learner.set_n_total_env_steps(n_total_env_steps)
        for rows in learner.updates(partial(self.segments, replay, log_prob=log_prob), replay):
            self.whitening.update(rows.state_next - rows.state, decompose=learner.measuring)
            self._follow_whitening()
            if learner.measuring:
                with torch.no_grad():
                    gained = self.potentials(rows.state, rows.context, rows.act, [rows.state_next])[0]
                learner.record({"skill/information": gained.mean()})
        self._follow_whitening()  # statistics may have changed, too
        metrics = learner.report()
        if metrics:
            if self.config.deviation == "fixed":
                self._warn_of_null_directions()
            metrics |= {"skill/std": self.std, "skill/length": float(self.whitening.covariance.trace().sqrt())}
        return metrics

    def _warn_of_null_directions(self) -> None:
        """Warn, once for each number of them, about directions of the state that skills do not change."""
        n, width = self.whitening.n_directions, self.world.encoder.state_dim
        if n < width and n != self._n_directions and self.learner.n_updates >= N_SETTLED:
            still = self.whitening.dropped.nonzero().flatten().tolist()
            dims = f"; dimensions {still} do not change at all" if still else ""
            warnings.warn(
                f"skills change the state in {n} of {width} directions{dims}: the others do not count in the reward",
                RuntimeWarning,
                stacklevel=3,
            )
        if self.learner.n_updates >= N_SETTLED:
            self._n_directions = n

    def _follow_whitening(self) -> None:
        """Let the symmetry-breaking start give each skill a displacement of its own in whitened coordinates."""
        start = self.dynamics.symmetry
        if start is not None and start.uses_map:
            start.set_transform(self.whitening.inverse / self.dynamics.unit[:, None])

    def state_dict(self) -> dict[str, Any]:
        return {
            "learner": self.learner.state_dict(),
            "whitening": self.whitening.state_dict(),
            "n_directions": self._n_directions,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.learner.load_state_dict(state["learner"])
        self.whitening.load_state_dict(state["whitening"])
        self._n_directions = state["n_directions"]
