"""Skills that are learned with a model of what they lead to, which a planner then uses."""

import sys
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from gymnasium import spaces
from tianshou.data import Batch
from torch import Tensor

from layeredrl.checks import require_count, require_counts, require_number
from layeredrl.models import ProbabilisticEnsemble
from layeredrl.models.optimizer import restore_optimizer
from layeredrl.replay import Replay
from layeredrl.skills.information import fixed_log_prob, information
from layeredrl.skills.method import SkillInputs, SkillMethod
from layeredrl.skills.whitening import Whitening
from layeredrl.task import TaskSpec
from layeredrl.world_model import WorldModel


@dataclass(frozen=True)
class SkillModelConfig:
    """When and how the model of skills is learned, and what is paid for by it."""

    n_first: int = 2000
    """Environment steps before the first update."""
    updates_per_skill: float = 2.0
    """Updates for each skill that was carried out."""
    batch_size: int = 256
    """Segments of an update."""
    newest: float = 0.5
    """Share of the replay, the newest, that it learns from: the policy changes, and with it what skills lead to."""
    final_rate: float = 0.1
    """Factor of the learning rate at the end."""
    decay: tuple[int, int] = (100_000, 200_000)
    """Environment steps between which the learning rate falls to that, linearly."""
    n_priors: int = 16
    """Skills from the prior that the executed one is compared with."""
    std: float = 1.0
    """Deviation of the outcomes that is assumed for the reward, in whitened coordinates. Wide at first: then it pays
    to go beyond what the model expects, and skills grow until they are as long as can be."""
    final_std: float = 0.3
    """Where it goes: narrow, skills are told apart by details."""
    std_decay: tuple[int, int] = (30_000, 120_000)
    """Environment steps between which it goes there, linearly."""
    refresh_every: int = 2000
    """Environment steps between two times at which what the data supports is counted anew."""
    report_every: int = 1000
    """Environment steps between two reports."""

    def __post_init__(self) -> None:
        require_counts(self, n_first=1, batch_size=2, n_priors=1, refresh_every=1, report_every=1)
        require_number("newest", self.newest, 0, 1, open_low=True)
        for name in ("updates_per_skill", "final_rate"):
            require_number(name, getattr(self, name), 0, sys.float_info.max)
        for name in ("std", "final_std"):
            require_number(name, getattr(self, name), 0, sys.float_info.max, open_low=True)
        for name in ("decay", "std_decay"):
            start, stop = getattr(self, name)
            if not 0 <= start <= stop:
                raise ValueError(f"{name} is {(start, stop)}, expected two increasing numbers of steps")


class ModelBasedSkills(SkillMethod):
    """Pays for what an outcome tells of its skill, by the model's own prediction of outcomes.

    Args:
        task: Of the environment.
        world: The model; its dynamics is an ensemble over skills, and it says what of an observation is the state that
            skills change.
        duration: Environment steps that a skill runs.
        config: Settings.
        inputs: What the policy sees; all but the goal by default, with the way since the skill's start.
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
    ) -> None:
        dynamics = world.dynamics
        if not isinstance(dynamics, ProbabilisticEnsemble) or dynamics.optimizer is None:
            raise TypeError(
                f"the dynamics is {type(dynamics).__name__}, expected a ProbabilisticEnsemble that can learn"
            )
        require_count("duration", duration)
        if world.reward_net is not None:
            raise ValueError(
                "the reward is not known as a function of the world's state, and skills learn none: give the task a "
                "reward_function, and the state the parts that it reads, in their order"
            )
        space = world.task.action_space
        if not isinstance(space, spaces.Box | spaces.Discrete):
            raise TypeError(f"the world's action space is {space}, expected skills of a Box or Discrete")
        self.space = space
        self.world, self.dynamics, self.duration = world.eval(), dynamics, duration
        self.config = SkillModelConfig() if config is None else config
        latent = world.encoder.state_index.tolist()
        self._inputs = SkillInputs(task, self.space, duration, latent=latent) if inputs is None else inputs
        self.n_inputs = self._inputs.width
        self.whitening = Whitening(world.encoder.state_dim).to(dynamics.device)
        self.n_total_env_steps = self.last_refresh = self.last_report = self.n_updates = 0
        self._first: int | None = None
        self._sums: dict[str, float] = {}
        self._n_summed = 0
        self._rates = [group["lr"] for group in dynamics.optimizer.param_groups]

    def inputs(self, obs: Tensor, command: Batch | None) -> Tensor:
        return self._inputs(obs, command)

    @abstractmethod
    def segments(self, replay: Replay, n: int) -> Batch:
        """Draw at most n of the newest transitions at the model's time scale.

        Returns:
            Keys `obs` and `obs_next` (n, O), `act` (n, Z).
        """

    @property
    def std(self) -> float:
        """Deviation of the outcomes that is assumed at present."""
        return self.config.std + (self.config.final_std - self.config.std) * self._passed(self.config.std_decay)

    def log_probs(self, start: Tensor, context: Tensor, skills: Tensor, outcomes: Sequence[Tensor]) -> list[Tensor]:
        """Log densities of outcomes under skills, but for a constant, in whitened coordinates.

        Args:
            start: States in which the skills begin, (n, S).
            context: (n, C).
            skills: Several for each, (n, L, Z).
            outcomes: States (n, S); the model is asked once for all of them.

        Returns:
            For each of the outcomes, (n, L).
        """
        n, width = skills.shape[:2]
        state, known = (x[:, None].expand(n, width, x.shape[-1]).flatten(0, 1) for x in (start, context))
        with self.dynamics.reduced(len(state)):
            mean, weights, _, _ = self.dynamics.predict(state, known, skills.flatten(0, 1))
        mean = self.whitening(mean - state[:, None, None]).flatten(1, 2).view(n, width, -1, start.shape[-1])
        weights = weights.flatten(1).view(n, width, -1) / self.dynamics.n_models
        return [fixed_log_prob(self.whitening(x - start)[:, None], mean, weights, self.std) for x in outcomes]

    def potentials(self, start: Tensor, context: Tensor, skill: Tensor, outcomes: Sequence[Tensor]) -> list[Tensor]:
        """What each outcome tells of the skill, (n,) each; the same other skills are drawn for all of them."""
        others = self.prior(len(skill) * self.config.n_priors, skill.device).view(len(skill), -1, skill.shape[-1])
        skills = torch.cat([skill[:, None], others.to(skill.dtype)], 1)
        return [information(x) for x in self.log_probs(start, context, skills, outcomes)]

    def learn(self, replay: Replay, n_total_env_steps: int) -> dict[str, float]:
        self.n_total_env_steps = n_total_env_steps
        self.dynamics.set_n_total_env_steps(n_total_env_steps)
        if n_total_env_steps < self.config.n_first:
            return {}
        if self._first is None:
            if not self._fit_statistics(replay):
                return {}
            self._first = self.last_report = n_total_env_steps
        n_skills = (n_total_env_steps - self._first) / self.duration
        due = int(self.config.updates_per_skill * n_skills)
        if self.n_updates < due:
            self.dynamics.train()
            while self.n_updates < due:
                self._update(replay)
                self.n_updates += 1
            self.dynamics.eval()
        if n_total_env_steps - self.last_refresh >= self.config.refresh_every:
            self.last_refresh = n_total_env_steps
            self._refresh(replay)
        if n_total_env_steps - self.last_report < self.config.report_every or not self._n_summed:
            return {}
        metrics = {name: total / self._n_summed for name, total in self._sums.items()}
        self._sums, self._n_summed, self.last_report = {}, 0, n_total_env_steps
        return metrics | {"skill/std": self.std, "model/updates": self.n_updates}

    def _update(self, replay: Replay) -> None:
        rows = self._transitions(self.segments(replay, self.config.batch_size))
        if not len(rows.state):  # no skill among them was carried out to its end
            return
        factor = 1 + (self.config.final_rate - 1) * self._passed(self.config.decay)
        assert self.dynamics.optimizer is not None
        for group, rate in zip(self.dynamics.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        losses = self.dynamics.learn([rows])
        self.whitening.update(rows.state_next - rows.state)
        self._follow_whitening()
        if self.n_updates % 10:  # to look at more of them would take a good part of the time
            return
        with torch.no_grad():
            told = self.potentials(rows.state, rows.context, rows.act, [rows.state_next])[0].mean()
        for name, value in (("model/loss", float(losses)), ("skill/information", float(told))):
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._n_summed += 1

    def _follow_whitening(self) -> None:
        """Let the symmetry-breaking start give each skill a displacement of its own in whitened coordinates."""
        start = self.dynamics.start
        if start is not None and start.uses_map:
            start.set_transform(self.whitening.inverse / self.dynamics.unit[:, None])

    def _transitions(self, rows: Batch) -> Batch:
        """Segments as the dynamics learns them."""
        state, context = self.world.encode(rows.obs)
        state_next, _ = self.world.encode(rows.obs_next)
        terminated = torch.zeros(len(state), device=state.device)
        return Batch(state=state, context=context, act=rows.act, state_next=state_next, terminated=terminated)

    @torch.no_grad()
    def _fit_statistics(self, replay: Replay) -> bool:
        """Take the statistics of the model's inputs and targets from the first data; they stay.

        Returns:
            Whether there was enough.
        """
        rows = self._transitions(self.segments(replay, 4096))
        if len(rows.state) < 2:
            return False
        self.dynamics.fit_statistics({key: rows[key] for key in ("state", "context", "act", "state_next")})
        self._follow_whitening()
        return True

    @torch.no_grad()
    def _refresh(self, replay: Replay) -> None:
        """Count anew which states the data supports."""
        data = torch.as_tensor(replay.column("obs_next"), device=self.dynamics.device)
        self.world.objective.fit_statistics(self.world.encode(data)[0])

    def _passed(self, span: tuple[int, int]) -> float:
        """Share of a span of environment steps that has passed."""
        start, stop = span
        return min(max((self.n_total_env_steps - start) / max(stop - start, 1), 0.0), 1.0)

    def state_dict(self) -> dict[str, Any]:
        assert self.dynamics.optimizer is not None
        return {
            "world": self.world.state_dict(),
            "whitening": self.whitening.state_dict(),
            "optimizer": self.dynamics.optimizer.state_dict(),
            "sums": dict(self._sums),
            **{name: getattr(self, name) for name in _NUMBERS},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.world.load_state_dict(state["world"])
        self.whitening.load_state_dict(state["whitening"])
        assert self.dynamics.optimizer is not None
        restore_optimizer("the skill model's optimizer", self.dynamics.optimizer, state["optimizer"])
        self._sums = dict(state["sums"])
        for name in _NUMBERS:
            setattr(self, name, state[name])


_NUMBERS = ("n_total_env_steps", "last_refresh", "last_report", "n_updates", "_first", "_n_summed")
