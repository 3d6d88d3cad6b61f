import re
import shutil
from pathlib import Path
from typing import Any

import gymnasium as gym
import imageio.v3 as iio
import numpy as np
import pytest
import torch

from experiments import plot_plan
from experiments.pictures.plans import Comparison, compare
from experiments.run.loading import load
from layeredrl.environments import make_env, make_task
from layeredrl.hierarchy import Hierarchy
from layeredrl.levels import PlannerLevel
from layeredrl.planners import ICEM, ICEMConfig
from layeredrl.world_model import Encoder, Oracle, WorldModel
from tests.experiments.commands import QUICK, call, run_train
from tests.experiments.conftest import Refusal
from tests.experiments.tasks import Drift

HORIZON = 5
"""Of the debug preset."""


def _row(text: str, name: str) -> str:
    """A value of the printed table."""
    (line,) = [line for line in text.splitlines() if re.match(rf"\W*{re.escape(name)}\s", line)]
    return line.split(name, 1)[1].strip(" │")


def _plan(run: Path, step: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The actions that a run's agent takes until some step, (step, A), and what it plans then, (H, A)."""
    config, agent, _ = load(run)
    (level,) = agent.levels
    assert isinstance(level, PlannerLevel)
    env, carry = make_env(config.env), agent.initial_carry(1, seed)
    obs, _ = env.reset(seed=seed)
    actions = []
    for _ in range(step):
        (action,) = agent.act(np.array([obs], np.float32), carry, explore=False)
        obs, *_ = env.step(action)
        carry.levels[0].remaining[:] = 0
        actions.append(action)
    plan = level.plan(torch.tensor(np.array([obs], np.float32)), carry.levels[0].memory, carry.generator)
    return np.array(actions), plan.actions[0].numpy()


def _replay(env_id: str, seed: int, before: np.ndarray, plan: np.ndarray) -> list[float]:
    """Rewards of a plan, carried out after other actions."""
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
    """Rewards tell one sequence of actions from another; only a time limit ends an episode."""

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, _, truncated, info = super().step(action)
        return obs, reward, False, truncated, info


@pytest.mark.parametrize(("step", "seed"), [(0, 3), (4, 1_000_000)])
def test_what_the_table_says_is_what_happens(
    step: int, seed: int, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, tmp_path / "r")
    call(plot_plan.main, "r", "--step", step, "--seed", seed, "--particles", 3)
    text = capsys.readouterr().out
    rewards = _replay("ContinuousCartPole-v0", seed, *_plan(trained, step, seed))
    assert _row(text, "plan carried out") == f"{sum(rewards):.2f} in {len(rewards)} steps"
    assert _row(text, "figure") == "r/plan.png"
    assert iio.imread(tmp_path / "r" / "plan.png").ndim == 3


def test_until_the_end_of_an_episode_and_not_beyond(
    tmp_path: Path, refusal: Refusal, capsys: pytest.CaptureFixture[str]
) -> None:
    gym.register("Endless-v0", Endless, max_episode_steps=15)
    run_train("pets", *QUICK, "--env", "Endless-v0", "--name", "r")
    for step, seed in ((7, 0), (13, 1)):
        call(plot_plan.main, "runs/r", "--step", step, "--seed", seed, "--output", tmp_path / f"{step}.png")
        text = capsys.readouterr().out
        rewards = _replay("Endless-v0", seed, *_plan(Path("runs/r"), step, seed))
        assert len(rewards) == min(HORIZON, 15 - step)
        assert _row(text, "plan carried out") == f"{sum(rewards):.2f} in {len(rewards)} steps"
        assert iio.imread(tmp_path / f"{step}.png").ndim == 3
        members = [float(x) for x in _row(text, "members' means").split(", ")]
        assert float(_row(text, "predicted return").split()[0]) == pytest.approx(np.mean(members), abs=0.01)
    assert not Path("runs/r/plan.png").exists()
    for step in (15, 40):
        assert f"step is {step}, expected less than 15, where the episode ends" in refusal(
            call, plot_plan.main, "runs/r", "--step", step, "--seed", 0
        )


def test_runs_and_settings_that_do_not_fit_are_refused(refusal: Refusal) -> None:
    run_train("random", *QUICK, "--name", "r")
    assert "runs/r holds random, which does not plan" in refusal(call, plot_plan.main, "runs/r")
    assert "particles is 0, expected at least 1" in refusal(call, plot_plan.main, "runs/r", "--particles", 0)
    assert "runs/none" in refusal(call, plot_plan.main, "runs/none")


@pytest.mark.parametrize("step", [0, 6])
def test_with_the_truth_for_a_model_the_prediction_is_what_happens(step: int) -> None:
    task = make_task("ContinuousCartPole-v0")
    encoder = Encoder(task)
    world = WorldModel(encoder, Oracle.from_task(task, encoder, n_models=2), task)
    planner = ICEM(task.action_space, ICEMConfig(horizon=8, n_samples=8, n_iterations=1, n_elites=2))
    level = PlannerLevel(world, planner, task.action_space)
    found = compare("ContinuousCartPole-v0", Hierarchy([level], task), level, step=step, seed=5, n_particles=3)
    assert found.predicted.state.shape == (3, 2, 1, 9, 4)
    assert found.carried_out is not None
    for states in found.predicted.state.flatten(0, 2):
        np.testing.assert_allclose(states, found.carried_out.obs, atol=1e-5)
    np.testing.assert_array_equal(found.carried_out.act[0], found.replanned.act[0])  # the plan is the agent's own
    np.testing.assert_array_equal(found.carried_out.obs[:2], found.replanned.obs[:2])
    assert not np.array_equal(found.carried_out.act, found.replanned.act)
    np.testing.assert_allclose((found.predicted.alive * found.predicted.reward).sum(-1), found.carried_out.rew.sum())


class Forgetful(Endless):
    """Differs from one instance to the next: in what it begins with, or only in what comes of actions."""

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
    begins: bool, step: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Comparison] = []

    def kept(*args: Any, **kwargs: Any) -> Comparison:
        found.append(compare(*args, **kwargs))
        return found[0]

    monkeypatch.setattr(plot_plan, "compare", kept)
    gym.register("Forgetful-v0", Forgetful, kwargs={"begins": begins}, max_episode_steps=15)
    run_train("pets", *QUICK, "--env", "Forgetful-v0", "--name", "r")
    capsys.readouterr()
    call(plot_plan.main, "runs/r", "--step", step)
    text = capsys.readouterr().out
    assert _row(text, "plan carried out") == "not comparable: the environment does not repeat itself"
    assert re.fullmatch(rf"-[\d.]+ in {HORIZON} steps", _row(text, "replanned"))
    assert found[0].carried_out is None
    assert iio.imread("runs/r/plan.png").ndim == 3
