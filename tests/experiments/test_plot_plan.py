import json
import re
import shutil
from pathlib import Path
from typing import Any

import gymnasium as gym
import imageio.v3 as iio
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from tianshou.data import Batch

from experiments import plot_plan
from experiments.pictures.plans import Comparison, compare, draw_comparison
from experiments.run.loading import load
from experiments.run.playing import play_track
from layeredrl.environments import make_env, make_task, make_vector_env
from layeredrl.hierarchy import Hierarchy
from layeredrl.levels import PlannerLevel
from layeredrl.models.config import EnsembleConfig
from layeredrl.planners import ICEM, ICEMConfig
from layeredrl.world_model import Encoder, Objective, Oracle, WorldModel
from tests.experiments.commands import call
from tests.experiments.conftest import Refusal
from tests.experiments.tasks import Drift

HORIZON = 3
"""Steps of a plan of the debug preset."""


def _row(text: str, name: str) -> str:
    """Return a value of the printed table."""
    (line,) = [line for line in text.splitlines() if re.match(rf"\W*{re.escape(name)}\s", line)]
    return line.split(name, 1)[1].strip(" │")


def _plan(run: Path, step: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the actions of a run's agent until some step, (step, A), and its plan there, (H, A)."""
    config, agent, _ = load(run)
    (level,) = agent.levels
    assert isinstance(level, PlannerLevel)
    env, carry = make_env(config.env), agent.initial_carry(1, seed)
    obs, _ = env.reset(seed=seed)
    actions, running = [], np.zeros(1, bool)
    for _ in range(step):
        (action,) = agent.act(np.array([obs], np.float32), carry, explore=False)
        obs, reward, *_ = env.step(action)
        step = Batch(rew=np.array([reward]), terminated=running, truncated=running, obs_next=np.array([obs]))
        agent.observe(step, np.arange(1), carry, learn=False)
        actions.append(action)
    plan = level.plan(torch.tensor(np.array([obs], np.float32)), carry.levels[0].memory, carry.generator)
    return np.array(actions), plan.actions[0].numpy()


def _replay(env_id: str, seed: int, before: np.ndarray, plan: np.ndarray) -> list[float]:
    """Return the rewards of a plan that is carried out after other actions."""
    env = make_env(env_id)
    env.reset(seed=seed)
    for action in before:
        assert not any(env.step(action)[2:4])
    rewards = []
    for action in plan:
        _, reward, *ended, _ = env.step(action)
        rewards.append(float(reward))
        if any(ended):
            break
    return rewards


class Endless(Drift):
    """Rewards differ between sequences of actions; only a time limit ends an episode."""

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, _, truncated, info = super().step(action)
        return obs, reward, False, truncated, info


def _moved(run: Path, env_id: str) -> Path:
    """Copy a run to a folder r, with another environment in its settings."""
    shutil.copytree(run, "r")
    settings = json.loads(Path("r/config.json").read_text())
    Path("r/config.json").write_text(json.dumps(settings | {"env": env_id}))
    return Path("r")


def test_the_printed_return_is_that_of_the_plan(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(trained, "r")
    call(plot_plan.main, "r", "--step", 4, "--seed", 1_000_000, "--particles", 3)
    text = capsys.readouterr().out
    rewards = _replay("ContinuousCartPole-v0", 1_000_000, *_plan(trained, 4, 1_000_000))
    assert _row(text, "plan carried out") == f"{sum(rewards):.2f} in {len(rewards)} steps"
    assert _row(text, "figure") == "r/plan.png"
    assert iio.imread("r/plan.png").ndim == 3


def test_plans_are_carried_out_until_the_end_of_an_episode(
    drift_run: Path, refusal: Refusal, capsys: pytest.CaptureFixture[str]
) -> None:
    gym.register("Endless-v0", Endless, max_episode_steps=15)
    run = _moved(drift_run, "Endless-v0")
    call(plot_plan.main, run, "--step", 13, "--seed", 1, "--output", "p.png")
    text = capsys.readouterr().out
    rewards = _replay("Endless-v0", 1, *_plan(run, 13, 1))
    assert len(rewards) == 2 < HORIZON
    assert _row(text, "plan carried out") == f"{sum(rewards):.2f} in 2 steps"
    members = [float(x) for x in _row(text, "members' means").split(", ")]
    assert float(_row(text, "predicted return").split()[0]) == pytest.approx(np.mean(members), abs=0.01)
    assert iio.imread("p.png").ndim == 3
    assert not (run / "plan.png").exists()
    line = refusal(call, plot_plan.main, run, "--step", 15, "--seed", 0)
    assert "step is 15, expected less than 15, where the episode ends" in line


def test_unfit_runs_and_settings_are_refused(random_run: Path, refusal: Refusal) -> None:
    assert f"{random_run} holds random, which does not plan" in refusal(call, plot_plan.main, random_run)
    assert "particles is 0, expected at least 1" in refusal(call, plot_plan.main, random_run, "--particles", 0)
    assert "runs/none" in refusal(call, plot_plan.main, "runs/none")


def test_the_prediction_of_true_dynamics_is_what_happens() -> None:
    task = make_task("ContinuousCartPole-v0")
    encoder = Encoder(task)
    world = WorldModel(encoder, Oracle.from_task(task, encoder, n_models=2), task)
    planner = ICEM(task.action_space, ICEMConfig(horizon=8, n_samples=8, n_iterations=1, n_elites=2))
    level = PlannerLevel(world, planner, task.action_space)
    found = compare("ContinuousCartPole-v0", Hierarchy([level], task), level, step=6, seed=5, n_particles=3)
    assert found.predicted.state.shape == (3, 2, 1, 9, 4)
    assert found.carried_out is not None
    for states in found.predicted.state.flatten(0, 2):
        np.testing.assert_allclose(states, found.carried_out.obs, atol=1e-5)
    np.testing.assert_array_equal(found.carried_out.act[0], found.replanned.act[0])  # the plan is the agent's own
    np.testing.assert_array_equal(found.carried_out.obs[:2], found.replanned.obs[:2])
    assert not np.array_equal(found.carried_out.act, found.replanned.act)
    np.testing.assert_allclose((found.predicted.alive * found.predicted.reward).sum(-1), found.carried_out.rew.sum())


def _slow_level(env_id: str, duration: int) -> tuple[Hierarchy, PlannerLevel]:
    task = make_task(env_id)
    encoder = Encoder(task)
    coarse = task.coarse(task.action_space, duration)
    dynamics = EnsembleConfig(n_models=2, hidden=(8,)).build(
        encoder.state_space, encoder.context_space, task.action_space, torch.device("cpu")
    )
    world = WorldModel(encoder, dynamics, coarse, objective=Objective(encoder.state_dim, discount=0.9))
    planner = ICEM(task.action_space, ICEMConfig(horizon=4, n_samples=8, n_iterations=1, n_elites=2))
    level = PlannerLevel(world, planner, task.action_space, duration=duration)
    return Hierarchy([level], task), level


def test_actions_of_several_steps_are_compared_at_their_own_time_scale() -> None:
    gym.register("Slow-v0", Endless, max_episode_steps=13)
    agent, level = _slow_level("Slow-v0", 3)
    found = compare("Slow-v0", agent, level, step=3, seed=5, n_particles=1)
    carried_out = found.carried_out
    assert carried_out is not None
    plain = make_env("Slow-v0")  # the plan by hand: each action three times, until the time limit ends the episode
    obs, rewards = [plain.reset(seed=5)[0]], []
    actions = np.concatenate([_first_actions(agent, 3), carried_out.act.repeat(3, 0)])
    for action in actions[:13]:
        result = plain.step(action)
        obs.append(result[0])
        rewards.append(float(result[1]))
    discount = 0.9 ** (1 / 3)
    expected = [sum(discount**i * r for i, r in enumerate(rewards[t : min(t + 3, 13)])) for t in (3, 6, 9, 12)]
    np.testing.assert_allclose(carried_out.rew, expected, rtol=1e-6)
    np.testing.assert_array_equal(carried_out.obs, np.array(obs, np.float32)[[3, 6, 9, 12, 13]])
    assert found.predicted.state.shape[-2] == len(carried_out.obs) == found.horizon + 1
    assert found.rows()["replanned"].endswith("in 4 steps of 3 environment steps")
    assert draw_comparison(found, level, "a plan").axes[0].lines[0].get_xdata().tolist() == [0, 3, 6, 9, 12]
    with pytest.raises(ValueError, match="step is 4, expected a multiple of 3"):
        compare("Slow-v0", agent, level, step=4, seed=5, n_particles=1)


def _first_actions(agent: Hierarchy, n: int) -> np.ndarray:
    """Return the first actions of the agent in an episode of seed 5 of Slow-v0."""
    return play_track(make_vector_env("Slow-v0"), agent, None, n_steps=n, seed=5)[0].act


class Forgetful(Endless):
    """Instances differ: in their first states, or only in the effects of actions."""

    n_instances = 0

    def __init__(self, begins: bool) -> None:
        super().__init__()
        Forgetful.n_instances += 1
        self._begins = begins
        self._shift = 0.01 * Forgetful.n_instances

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if self._begins:
            self._point += self._shift
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return super().step(np.asarray(action) + (0 if self._begins else self._shift))


@pytest.mark.parametrize(("begins", "step"), [(True, 0), (False, 0), (False, 3)])
def test_an_environment_that_does_not_repeat_itself(
    begins: bool, step: int, drift_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(found: Comparison, *args: Any) -> Figure:
        assert found.carried_out is None
        return draw_comparison(found, *args) if step else Figure()

    monkeypatch.setattr(plot_plan, "draw_comparison", draw)
    gym.register("Forgetful-v0", Forgetful, kwargs={"begins": begins}, max_episode_steps=15)
    call(plot_plan.main, _moved(drift_run, "Forgetful-v0"), "--step", step)
    text = capsys.readouterr().out
    assert _row(text, "plan carried out") == "not comparable: the environment does not repeat itself"
    assert re.fullmatch(rf"-[\d.]+ in {HORIZON} steps", _row(text, "replanned"))
    assert iio.imread("r/plan.png").ndim == 3
