"""A walk under skills that is stored in a replay and in plain lists, and a model of such skills."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from tianshou.data import Batch
from torch import Tensor

from layeredrl.models import ProbabilisticEnsemble
from layeredrl.models.nets import GaussianMixtureMLP
from layeredrl.skills import ModelBasedSkills
from layeredrl.storage import Replay
from layeredrl.task import TaskSpec
from layeredrl.world_model import Encoder, LearnedEncoder, WorldModel

PLANE = spaces.Box(-9.0, 9.0, (2,), np.float32)
TASK = TaskSpec(
    spaces.Dict(achieved_goal=PLANE, desired_goal=PLANE, observation=spaces.Box(-9.0, 9.0, (3,), np.float32)),
    spaces.Box(-1.0, 1.0, (2,), np.float32),
    reward=lambda state, context, action, next_state: -(next_state[..., :2] - context).norm(dim=-1),
)
WIDTH = 7  # achieved goal, which skills change; desired goal; the rest
ENCODER = Encoder(TASK, ("achieved_goal",))
SKILLS, CHOICES = spaces.Box(-1.0, 1.0, (2,), np.float32), spaces.Discrete(3)


class Row(NamedTuple):
    """A stored transition."""

    obs: np.ndarray
    obs_next: np.ndarray
    skill: np.ndarray
    start: np.ndarray
    elapsed: int
    remaining: int
    duration: int
    episode: int
    rew: float


class Walk:
    """Environments in which skills push a point around; the ends of episodes come at odd moments.

    Args:
        n_envs: Number of environments.
        size: Number of transitions of each that the replay keeps.
        skill_steps: Duration of a skill in environment steps.
        skills: Skill space.
        action_steps: Environment steps of an action; the last one of a skill is cut short.
        done: Probability of an episode's end at every environment step.
        noise: Standard deviation of the noise of a transition.
        spread: Standard deviation of the first observations of episodes.
        reward: Rewards (n,) of next observations (n, WIDTH); ones by default.
        seed: Random seed.
    """

    def __init__(
        self,
        n_envs: int = 2,
        size: int = 400,
        skill_steps: int = 5,
        skills: spaces.Space[Any] = SKILLS,
        *,
        action_steps: int = 1,
        done: float = 0.05,
        noise: float = 0.02,
        spread: float = 1.0,
        reward: Callable[[np.ndarray], np.ndarray] | None = None,
        seed: int = 0,
    ) -> None:
        self.reward = reward
        self.rng, self.n_envs, self.size = np.random.default_rng(seed), n_envs, size
        self.skill_steps, self.action_steps, self.skills = skill_steps, action_steps, skills
        self.done, self.noise, self.spread = done, noise, spread
        self.replay = Replay(size * n_envs, n_envs, seed=seed)
        self.rows: list[list[Row]] = [[] for _ in range(n_envs)]
        self.obs = (spread * self.rng.normal(size=(n_envs, WIDTH))).astype(np.float32)
        self.start, self.skill = self.obs.copy(), self.draw(n_envs)
        self.elapsed, self.episode = np.zeros(n_envs, np.int64), np.zeros(n_envs, np.int64)

    def draw(self, n: int) -> np.ndarray:
        """Skills (n, Z)."""
        if isinstance(self.skills, spaces.Discrete):
            return self.rng.integers(0, self.skills.n, (n, 1))
        return self.rng.uniform(-1, 1, (n, self.skills.shape[0])).astype(np.float32)

    def push(self) -> np.ndarray:
        """Displacement by the skills in one step, (n, 2)."""
        if isinstance(self.skills, spaces.Discrete):
            angle = 2 * np.pi * self.skill[:, 0] / self.skills.n
            return 0.3 * np.stack([np.cos(angle), np.sin(angle)], 1)
        return 0.3 * self.skill

    def step(self, n: int = 1) -> "Walk":
        """Store n transitions of each environment."""
        for _ in range(n):
            self._step()
        return self

    def _step(self) -> None:
        n, rng = self.n_envs, self.rng
        remaining = self.skill_steps - self.elapsed
        wanted = np.minimum(self.action_steps, remaining)
        ends_after = rng.geometric(self.done, n) if self.done else np.full(n, 10**9)
        duration, over = np.minimum(wanted, ends_after), ends_after <= wanted
        moved = self.noise * rng.normal(size=(n, WIDTH))
        moved[:, :2] += duration[:, None] * self.push()
        moved[:, 2:4] = 0.0
        obs_next = (self.obs + moved).astype(np.float32)
        terminated = over & (rng.random(n) < 0.5)
        before, after, start = self.obs.copy(), obs_next.copy(), self.start.copy()
        command = Batch(action=self.skill.copy(), obs=start, elapsed=self.elapsed.copy(), remaining=remaining.copy())
        rew = np.ones(n) if self.reward is None else self.reward(obs_next)
        self.replay.add(
            Batch(
                obs=before,
                act=rng.uniform(-1, 1, (n, 2)).astype(np.float32),
                rew=rew,
                terminated=terminated,
                truncated=over & ~terminated,
                obs_next=after,
                info=Batch(duration=duration.astype(np.int64), command=command),
            ),
            np.arange(n),
        )
        for i in range(n):
            counts = (int(x[i]) for x in (self.elapsed, remaining, duration, self.episode))
            row = Row(before[i], after[i], self.skill[i].copy(), start[i], *counts, float(rew[i]))
            self.rows[i].append(row)
        fresh = (self.spread * rng.normal(size=obs_next.shape)).astype(np.float32)
        self.obs = np.where(over[:, None], fresh, obs_next)
        self.elapsed = np.where(over, 0, (self.elapsed + duration) % self.skill_steps)
        self.episode = self.episode + over
        begins = (self.elapsed == 0)[:, None]
        self.start = np.where(begins, self.obs, self.start)
        self.skill = np.where(begins, self.draw(n), self.skill)

    def newest(self, share: float) -> list[list[Row]]:
        """Rows of each environment from which the replay draws a share of the newest transitions."""
        kept = [rows[-self.size :] for rows in self.rows]
        return [rows[len(rows) - max(1, round(share * len(rows))) :] for rows in kept]

    def whole_skills(self) -> list[list[Row]]:
        """Rows of each skill that was executed from its start to its end, also of those no longer stored."""
        found = []
        for rows in self.rows:
            parts: list[Row] = []
            for row in rows:
                parts = [row] if row.elapsed == 0 else [*parts, row]
                if row.remaining == row.duration:
                    found.append(parts)
        return found


def as_batch(rows: list[Row], discount: float = 0.9) -> Batch:
    """A batch as in `Relabel`, without actions, indices and rewards."""
    columns = {name: torch.tensor(np.array([getattr(row, name) for row in rows])) for name in Row._fields}
    command = Batch(
        action=columns["skill"], obs=columns["start"], elapsed=columns["elapsed"], remaining=columns["remaining"]
    )
    return Batch(
        obs=columns["obs"],
        obs_next=columns["obs_next"],
        rew=torch.zeros(len(rows)),
        discount=discount ** columns["duration"],
        command=command,
        next_command=Batch(
            action=command.action,
            obs=command.obs,
            elapsed=command.elapsed + columns["duration"],
            remaining=command.remaining - columns["duration"],
        ),
    )


def make_world(
    skills: spaces.Box | spaces.Discrete = SKILLS,
    *,
    steps: int = 5,
    repeat: int = 1,
    sb_start_duration: int = 0,
    known: bool = True,
    learned: tuple[int, int] | None = None,
    seed: int = 0,
    **settings: Any,
) -> WorldModel:
    """A small world model of skills; `learned`: widths of state and context of a learned encoder."""
    torch.manual_seed(seed)
    encoder = ENCODER if learned is None else LearnedEncoder(TASK, *learned)
    dynamics = ProbabilisticEnsemble(
        encoder.state_space,
        encoder.context_space,
        skills,
        partial(GaussianMixtureMLP, hidden=(8,)),
        **{"n_modes": 2, "create_optimizer": True, "learning_rate": 1e-2} | settings,
        symmetry_breaking_start=sb_start_duration > 0,
        sb_start_duration=max(sb_start_duration, 1),
    )
    coarse = TASK.coarse(skills, steps, known=known and learned is None)
    return WorldModel(encoder, dynamics, coarse, repeat=repeat)


def triples(obs: Any, act: Any, obs_next: Any) -> set[tuple[float, ...]]:
    """Segments (n, O), (n, Z), (n, O) as a set that can be compared."""
    return {tuple(np.concatenate([np.ravel(x) for x in row]).tolist()) for row in zip(obs, act, obs_next, strict=True)}


def no_log_prob(inputs: Tensor, action: Tensor) -> Tensor:
    """The log-probability of methods that need none."""
    raise AssertionError("a method without importance weights needs no log-probability")


def learn_along(method: ModelBasedSkills, walk: Walk, n_steps: int) -> dict[int, dict[str, float]]:
    """Step and learn; returns reports by environment steps."""
    reports = {}
    for _ in range(n_steps):
        walk.step()
        n = walk.n_envs * len(walk.rows[0])
        metrics = method.learn(walk.replay, n, no_log_prob)
        if metrics:
            reports[n] = metrics
    return reports
