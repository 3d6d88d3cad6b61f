"""Forecasts against a plain loop, and predicted and achieved returns of agents that follow their plans."""

from collections import defaultdict
from dataclasses import dataclass
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from tianshou.data import Batch

from layeredrl.collector import Collector
from layeredrl.hierarchy import Hierarchy
from layeredrl.levels import PlannerLevel
from layeredrl.levels.forecasts import Forecasts
from layeredrl.planners import Plan, Planner
from layeredrl.task import TaskSpec
from layeredrl.world_model import Encoder, Objective, Oracle, WorldModel

E = 4


@dataclass
class Plain:
    """The forecast of one environment."""

    discount: float
    predicted: float | None = None
    rewards: list[float] | None = None
    n_steps: int = 0

    def open(self, predicted, n_steps):
        if self.predicted is None and np.isfinite(predicted):
            self.predicted, self.rewards, self.n_steps = predicted, [], n_steps

    def step(self, reward, terminated, truncated):
        """Predicted and achieved return if the forecast is settled, else None."""
        if self.predicted is None:
            return None
        self.rewards.append(reward)
        result = None
        if terminated or len(self.rewards) == self.n_steps:
            result = self.predicted, sum(r * self.discount**k for k, r in enumerate(self.rewards))
        if result or truncated:
            self.predicted = None
        return result


@pytest.mark.parametrize("discount", [1.0, 0.9, 0.0])
def test_forecasts_are_settled_as_in_a_plain_loop(discount):
    rng = np.random.default_rng(0)
    forecasts, plain, n_settled = Forecasts(E, discount), [Plain(discount) for _ in range(E)], 0
    for _ in range(300):
        ids = np.flatnonzero(rng.random(E) < 0.5)
        predicted, n_steps = rng.normal(size=len(ids)), int(rng.integers(1, 6))
        predicted[rng.random(len(ids)) < 0.3] = rng.choice([np.nan, np.inf, -np.inf])
        forecasts.open(ids, predicted, n_steps)
        for i, value in zip(ids, predicted, strict=True):
            plain[i].open(value, n_steps)
        ids = np.flatnonzero(rng.random(E) < 0.8)
        rewards, terminated, truncated = rng.normal(size=len(ids)), *(rng.random((2, len(ids))) < 0.1)
        settled = forecasts.step(ids, rewards, terminated, truncated)
        results = {i: plain[i].step(*row) for i, *row in zip(ids, rewards, terminated, truncated, strict=True)}
        expected = [(i, *result) for i, result in results.items() if result is not None]
        n_settled += len(expected)
        np.testing.assert_allclose(np.transpose(settled), np.reshape(expected, (-1, 3)), rtol=1e-12, atol=1e-12)
        if rng.random() < 0.05:
            ids = np.flatnonzero(rng.random(E) < 0.5)
            forecasts.drop(ids)
            for i in ids:
                plain[i].predicted = None
    assert n_settled > 100


# ------------------------------------------------------------------ through the agent and the collector

H, DISCOUNT = 3, 0.9
UNIT = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
PLANE = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
SEQUENCE = torch.sin(torch.arange(100.0))
"""Actions of every episode, from which plans are taken."""


def move(state, context, action):
    position, speed = state.unbind(-1)
    speed = 0.8 * speed + 0.4 * action[..., 0]
    return torch.stack([position + speed, speed], -1)


def reward(state, context, action, after):
    return after[..., 0] + state[..., 1] - 0.1 * action[..., 0].square()


def is_far(state, context, action, after):
    return after[..., 0].abs() > 1.5


class Pushed(gym.Env):
    """A deterministic task whose episodes terminate far out and are truncated after `limit` steps."""

    observation_space, action_space = PLANE, UNIT

    def __init__(self, limit):
        self.limit = limit

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.n_steps, self.state = 0, torch.as_tensor(self.np_random.uniform(-1, 1, 2), dtype=torch.float32)
        return self.state.numpy(), {}

    def step(self, action):
        before, self.n_steps = self.state, self.n_steps + 1
        columns = before, None, torch.as_tensor(action)
        self.state = move(*columns)
        gain, far = float(reward(*columns, self.state)), bool(is_far(*columns, self.state))
        return self.state.numpy(), gain, far, self.n_steps >= self.limit and not far, {}


class Persistent(Planner):
    """Plans the sequence of the episode."""

    def initial_warm_start(self, n_envs, device):
        return Batch(n_steps=torch.zeros(n_envs, dtype=torch.int64))

    def _plan(self, score, n_envs, warm_start, generator, proposals):
        actions = SEQUENCE[warm_start.n_steps[:, None] + torch.arange(self.horizon), None]
        scores = score(actions[:, None])[:, 0]
        return Plan(actions, scores, Batch(n_steps=warm_start.n_steps + 1), scores[None])


def make_agent(n_envs):
    task = TaskSpec(PLANE, UNIT, n_envs, reward, is_far)
    encoder = Encoder(task)
    oracle = Oracle.from_step(encoder.state_space, encoder.context_space, UNIT, move, n_models=2)
    world = WorldModel(
        encoder, oracle, task, objective=Objective(2, discount=DISCOUNT, value=lambda s, c: 5 + s[..., 0])
    )
    return Hierarchy([PlannerLevel(world, Persistent(UNIT, H), UNIT)], task)


def plain_returns(rows):
    """Achieved returns and scores of an episode's plans, by a plain loop.

    Args:
        rows: Observation, reward, and whether it terminated, for each step.
    """
    returns, scores = [], []
    for start in range(0, len(rows), H):
        part = rows[start : start + H]
        total = sum(r * DISCOUNT**k for k, (_, r, _) in enumerate(part))
        ended = part[-1][2]
        if ended or len(part) == H:
            returns.append(total)
        state, score, alive = torch.as_tensor(part[0][0]), 0.0, True
        for k in range(H):
            action = SEQUENCE[[start + k]]
            after = move(state, None, action)
            score += DISCOUNT**k * alive * float(reward(state, None, action, after))
            alive = alive and not is_far(state, None, action, after)
            state = after
        scores.append(score + DISCOUNT**H * alive * (5 + float(state[0])))
    return returns, scores


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_collector_reports_predicted_and_achieved_returns(mode):
    limits = (1, 4, 9, 40)
    env = SyncVectorEnv([partial(Pushed, n) for n in limits], autoreset_mode=mode)
    episodes, ends = defaultdict(list), set()  # (environment, number of the episode): rows
    n_episodes = np.zeros(len(limits), np.int64)

    def look(step, env_ids):
        for row, i in zip(step, env_ids, strict=True):
            episodes[i, n_episodes[i]].append((row.obs, float(row.rew), bool(row.terminated)))
            if row.terminated or row.truncated:
                ends.add((bool(row.terminated), len(episodes[i, n_episodes[i]]) % H == 0))
                n_episodes[i] += 1

    collector = Collector(env, make_agent(len(limits)), seed=0, on_step=look)
    n_before = defaultdict(lambda: (0, 0))
    for n_steps in (1, 2, 17, 25):
        for _ in range(n_steps):
            collector.step(explore=True)
        metrics = collector.take_metrics()
        assert collector.take_metrics() == {}
        returns, scores = [], []
        for key, rows in episodes.items():
            n_returns, n_scores = n_before[key]
            all_returns, all_scores = plain_returns(rows)
            n_before[key] = len(all_returns), len(all_scores)
            returns += all_returns[n_returns:]
            scores += all_scores[n_scores:]
        for name, expected in (("predicted_return", returns), ("achieved_return", returns), ("score", scores)):
            assert metrics.get(f"plan/{name}", np.nan) == pytest.approx(
                np.mean(expected) if expected else np.nan, rel=1e-5, nan_ok=True
            )
    assert ends == {(True, True), (True, False), (False, True), (False, False)}


def test_plans_that_are_always_truncated_have_no_returns():
    env = SyncVectorEnv([partial(Pushed, 1)] * 2, autoreset_mode=AutoresetMode.DISABLED)
    collector = Collector(env, make_agent(2), seed=3)
    for _ in range(2):
        assert not any(episode.length > 1 for episode in collector.step(explore=True))
    names = collector.take_metrics().keys()
    assert "plan/score" in names
    assert not names & {"plan/predicted_return", "plan/achieved_return"}


def test_a_collector_that_does_not_learn_has_no_metrics():
    env = SyncVectorEnv([partial(Pushed, 9)], autoreset_mode=AutoresetMode.DISABLED)
    collector = Collector(env, make_agent(1), seed=0, learn=False)
    for _ in range(7):
        collector.step(explore=False)
    assert collector.take_metrics() == {}


def test_abandoned_episodes_leave_no_forecast():
    env = SyncVectorEnv([partial(Pushed, 9)], autoreset_mode=AutoresetMode.DISABLED)
    collector = Collector(env, make_agent(1), seed=0)
    collector.step(explore=True)
    collector.collect_episodes(1)  # begins anew
    metrics = collector.take_metrics()
    assert metrics["plan/predicted_return"] == pytest.approx(metrics["plan/achieved_return"], rel=1e-5)
