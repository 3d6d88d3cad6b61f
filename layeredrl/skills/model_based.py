"""Skills that are learned with a model of what they lead to, which a planner then uses."""

import sys
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from gymnasium import spaces
from tianshou.data import Batch
from torch import Tensor

from layeredrl.checks import require_choice, require_count, require_counts, require_number
from layeredrl.models import ProbabilisticEnsemble
from layeredrl.models.density import mixture_log_prob
from layeredrl.models.optimizer import restore_optimizer
from layeredrl.skills.information import fixed_log_prob, information
from layeredrl.skills.learned_reward import LearnedReward
from layeredrl.skills.method import SkillInputs, SkillMethod
from layeredrl.skills.whitening import Whitening
from layeredrl.storage import Replay
from layeredrl.task import TaskSpec
from layeredrl.world_model import LearnedEncoder, WorldModel


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
    decay: tuple[int, int] = (60_000, 120_000)
    """Environment steps between which the learning rate falls to that, linearly."""
    n_priors: int = 16
    """Skills from the prior that the executed one is compared with."""
    std: float = 1.0
    """Deviation of the outcomes that is assumed for the reward, in whitened coordinates. Wide at first: then it pays
    to go beyond what the model expects, and skills grow until they are as long as can be."""
    final_std: float = 0.5
    """Where it goes: narrow, skills are told apart by details."""
    std_decay: tuple[int, int] = (30_000, 90_000)
    """Environment steps between which it goes there, linearly."""
    deviation: Literal["fixed", "learned"] = "fixed"
    """Whether that is the deviation, or the least that the model's own may be."""
    refresh_every: int = 2000
    """Environment steps between two times at which what the data supports is counted anew, and the scales of what is
    learned beside the dynamics are fitted anew."""
    reward_learning_rate: float = 1e-3
    """Of the reward network, and of an encoder that is learned, where the task's reward is not known."""
    report_every: int = 1000
    """Environment steps between two reports."""

    def __post_init__(self) -> None:
        require_counts(self, n_first=1, batch_size=2, n_priors=1, refresh_every=1, report_every=1)
        require_choice("deviation", self.deviation, ("fixed", "learned"))
        require_number("newest", self.newest, 0, 1, open_low=True)
        for name in ("updates_per_skill", "final_rate"):
            require_number(name, getattr(self, name), 0, sys.float_info.max)
        for name in ("std", "final_std", "reward_learning_rate"):
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
            skills change. A reward that is not known is learned.
        duration: Environment steps that a skill runs.
        config: Settings.
        inputs: What the policy sees; all but the goal by default, with the way since the skill's start.
        hidden: Parts of the observation that it then does not see, as in `SkillInputs`.
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
    ) -> None:
        dynamics = world.dynamics
        if not isinstance(dynamics, ProbabilisticEnsemble) or dynamics.optimizer is None:
            raise TypeError(
                f"the dynamics is {type(dynamics).__name__}, expected a ProbabilisticEnsemble that can learn"
            )
        require_count("duration", duration)
        space = world.task.action_space
        if not isinstance(space, spaces.Box | spaces.Discrete):
            raise TypeError(f"the world's action space is {space}, expected skills of a Box or Discrete")
        self.space = space
        self.world, self.dynamics, self.duration = world.eval(), dynamics, duration
        self.config = SkillModelConfig() if config is None else config
        self.learned_reward: LearnedReward | None = None
        if world.reward_net is not None:
            self.learned_reward = LearnedReward(world, world.reward_net, self.config.reward_learning_rate)
        encoder = world.encoder
        latent = encoder if isinstance(encoder, LearnedEncoder) else encoder.state_index.tolist()
        if inputs is None:
            inputs = SkillInputs(task, self.space, duration, latent=latent, hidden=hidden)
        self._inputs = inputs
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
            Keys `obs` and `obs_next` (n, O), `act` (n, Z); and `rew` (n,), the sum of the environment's rewards, which
            is asked for only where the reward is learned.
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
        return metrics | {
            "skill/std": self.std,
            "skill/length": float(self.whitening.covariance.trace().sqrt()),
            "model/updates": self.n_updates,
        }

    def _update(self, replay: Replay) -> None:
        segments = self.segments(replay, self.config.batch_size)
        rows = self._transitions(segments)
        if not len(rows.state):  # no skill among them was carried out to its end
            return
        factor = 1 + (self.config.final_rate - 1) * self._passed(self.config.decay)
        assert self.dynamics.optimizer is not None
        for group, rate in zip(self.dynamics.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        losses = self.dynamics.learn([rows])
        told = {"model/loss": losses}
        if self.learned_reward is not None:
            told["model/reward_loss"] = self.learned_reward.learn(segments, factor)
        self.whitening.update(rows.state_next - rows.state)
        self._follow_whitening()
        if self.n_updates % 10:  # to look at more of them would take a good part of the time
            return
        with torch.no_grad():
            gained = self.potentials(rows.state, rows.context, rows.act, [rows.state_next])[0]
        for name, value in (told | {"skill/information": gained.mean()}).items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value)
        self._n_summed += 1

    def _follow_whitening(self) -> None:
        """Let the symmetry-breaking start give each skill a displacement of its own in whitened coordinates."""
        start = self.dynamics.symmetry
        if start is not None and start.uses_map:
            start.set_transform(self.whitening.inverse / self.dynamics.unit[:, None])

    def _transitions(self, rows: Batch) -> Batch:
        """Segments as the dynamics learns them."""
        state, context = self.world.encode(rows.obs)
        state_next, _ = self.world.encode(rows.obs_next)
        terminated = torch.zeros(len(state), device=state.device)
        found = Batch(state=state, context=context, act=rows.act, state_next=state_next, terminated=terminated)
        if "weight" in rows.get_keys():
            found.weight = rows.weight
        return found

    @torch.no_grad()
    def _fit_statistics(self, replay: Replay) -> bool:
        """Take the statistics of what networks see and predict; the dynamics keeps the first ones of states that stay.

        Returns:
            Whether there was enough.
        """
        segments = self.segments(replay, 4096)
        if len(segments.obs) < 2:
            return False
        encoder = self.world.encoder
        if isinstance(encoder, LearnedEncoder):
            encoder.fit(*(torch.as_tensor(replay.column(x), device=self.dynamics.device) for x in ("obs", "obs_next")))
        if self._first is None or isinstance(encoder, LearnedEncoder):
            rows = self._transitions(segments)
            self.dynamics.fit_statistics({key: rows[key] for key in ("state", "context", "act", "state_next")})
            self._follow_whitening()
        if self.learned_reward is not None:
            self.learned_reward.fit_scales(segments)
        return True

    @torch.no_grad()
    def _refresh(self, replay: Replay) -> None:
        """Count anew which states the data supports, and fit anew the scales that move."""
        if self.learned_reward is not None:
            self._fit_statistics(replay)
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
            **({} if self.learned_reward is None else {"reward_optimizer": self.learned_reward.state_dict()}),
            "sums": dict(self._sums),
            **{name: getattr(self, name) for name in _NUMBERS},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.world.load_state_dict(state["world"])
        self.whitening.load_state_dict(state["whitening"])
        assert self.dynamics.optimizer is not None
        restore_optimizer("the skill model's optimizer", self.dynamics.optimizer, state["optimizer"])
        if self.learned_reward is not None:
            self.learned_reward.load_state_dict(state["reward_optimizer"])
        self._sums = dict(state["sums"])
        for name in _NUMBERS:
            setattr(self, name, state[name])


_NUMBERS = ("n_total_env_steps", "last_refresh", "last_report", "n_updates", "_first", "_n_summed")
