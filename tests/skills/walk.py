"""A walk under skills that is stored in a replay and in plain lists, and a model of such skills."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from tianshou.data import Batch

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
WIDTH = 7  # achieved goal, which is what skills change; desired goal; the rest
ENCODER = Encoder(TASK, ("achieved_goal",))
SKILLS, CHOICES = spaces.Box(-1.0, 1.0, (2,), np.float32), spaces.Discrete(3)


class Row(NamedTuple):
    """A transition as it was stored."""

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
        size: Rows of each that the replay keeps.
        skill_steps: Environment steps of a skill.
        skills: Their space.
        action_steps: Environment steps of an action; the last one of a skill is cut short.
        done: Probability of an episode's end at every environment step.
        noise: Of each transition.
        spread: Of the observations with which episodes begin.
        mix: What is stored of an observation is its product with this, (WIDTH, WIDTH).
        pay: Reward of each transition, of what its observations were before they were mixed; ones by default.
        seed: Of all that is random.
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
        mix: np.ndarray | None = None,
        pay: Callable[[np.ndarray], np.ndarray] | None = None,
        seed: int = 0,
    ) -> None:
        self.mix, self.pay = mix, pay
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
        """Where skills go in one step, (n, 2)."""
        if isinstance(self.skills, spaces.Discrete):
            angle = 2 * np.pi * self.skill[:, 0] / self.skills.n
            return 0.3 * np.stack([np.cos(angle), np.sin(angle)], 1)
        return 0.3 * self.skill

    def seen(self, obs: np.ndarray) -> np.ndarray:
        """Observations (n, WIDTH) as they are stored."""
        return obs.copy() if self.mix is None else (obs @ self.mix).astype(np.float32)

    def step(self, n: int = 1) -> "Walk":
        """Store so many transitions of each environment."""
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
        before, after, start = self.seen(self.obs), self.seen(obs_next), self.seen(self.start)
        told = Batch(action=self.skill.copy(), obs=start, elapsed=self.elapsed.copy(), remaining=remaining.copy())
        rew = np.ones(n) if self.pay is None else self.pay(obs_next)
        self.replay.add(
            Batch(
                obs=before,
                act=rng.uniform(-1, 1, (n, 2)).astype(np.float32),
                rew=rew,
                terminated=terminated,
                truncated=over & ~terminated,
                obs_next=after,
                info=Batch(duration=duration.astype(np.int64), command=told),
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
        """By environment, the rows from which the replay draws if it is asked for a share of the newest ones."""
        kept = [rows[-self.size :] for rows in self.rows]
        return [rows[len(rows) - max(1, round(share * len(rows))) :] for rows in kept]

    def whole_skills(self) -> list[list[Row]]:
        """The rows of each skill that was carried out from its start to its end, however long ago."""
        found = []
        for rows in self.rows:
            parts: list[Row] = []
            for row in rows:
                parts = [row] if row.elapsed == 0 else [*parts, row]
                if row.remaining == row.duration:
                    found.append(parts)
        return found


def as_batch(rows: list[Row], discount: float = 0.9) -> Batch:
    """What a level hands to its `relabel`, but for actions, rewards and places."""
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
    """A world model of skills, with a small network; `learned` are the widths of an encoder that is learned."""
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
    """Segments (n, O), (n, Z), (n, O) as they can be compared."""
    return {tuple(np.concatenate([np.ravel(x) for x in row]).tolist()) for row in zip(obs, act, obs_next, strict=True)}


def learn_along(method: ModelBasedSkills, walk: Walk, n_steps: int) -> dict[int, dict[str, float]]:
    """Step and learn; what was told, by environment steps."""
    told = {}
    for _ in range(n_steps):
        walk.step()
        n = walk.n_envs * len(walk.rows[0])
        metrics = method.learn(walk.replay, n)
        if metrics:
            told[n] = metrics
    return told
