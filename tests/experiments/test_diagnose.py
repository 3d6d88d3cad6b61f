import shutil
from pathlib import Path

import gymnasium as gym
import imageio.v3 as iio
import numpy as np
import pytest
import torch

from experiments import diagnose
from experiments.report.page import run_html
from experiments.report.runs import read_run
from experiments.run.held_out import collect, displaced, longest_episode, trajectories, transitions
from layeredrl.task import TaskSpec
from layeredrl.world_model import Encoder, Oracle, WorldModel
from tests.envs.counter import CounterEnv
from tests.experiments.commands import call
from tests.experiments.conftest import Refusal
from tests.experiments.tasks import Drift

FIGURES = ("predictions", "calibration", "open_loop", "disagreement")


def _table(text: str) -> dict[str, list[float]]:
    """Return the rows of the printed table: metrics of each policy by name."""
    rows = [[part.strip() for part in line.strip("│ ").split("│")] for line in text.splitlines() if "model/" in line]
    return {name: [float(x) for x in cells if x] for name, *cells in rows if cells}


def test_numbers_and_figures_of_a_run(drift_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(drift_run, tmp_path / "r")
    call(diagnose.main, "r", "--steps", 40, "--horizon", 8)
    rows = _table(capsys.readouterr().out)
    assert all(len(rows[f"model/{name}"]) == 2 for name in ("r2", "nll", "coverage_90", "open_loop/rmse_8"))
    assert 0 <= rows["model/coverage_90"][0] <= 1
    assert len(rows["model/r2/observation 1"]) == 2
    run = read_run(tmp_path / "r")  # as a report reads it
    assert run.notes == []
    assert rows.keys() <= run.diagnosis["agent"].keys()
    assert run.diagnosis["random"]["n_total_env_steps"] == 60
    for i, policy in enumerate(("random", "agent")):
        assert run.diagnosis[policy]["model/r2"] == pytest.approx(rows["model/r2"][i], rel=1e-3)
    assert "model/coverage_90" in run_html(run, "")
    for name in FIGURES:
        for policy in ("random", "agent"):
            assert iio.imread(tmp_path / "r" / f"model_{name}_{policy}.png").ndim == 3


def test_a_run_without_a_world_model_is_refused(random_run: Path, refusal: Refusal) -> None:
    assert f"{random_run} holds random, which does not plan" in refusal(call, diagnose.main, random_run)
    assert "horizon is 0, expected at least 1" in refusal(call, diagnose.main, random_run, "--horizon", 0)


def test_collected_data_repeat_with_the_seed_from_an_id_or_a_factory() -> None:
    gym.register("Drift-v0", Drift)
    data, again, other = (collect("Drift-v0", n_steps=50, seed=seed) for seed in (1, 1, 2))
    assert data.obs.shape == data.obs_next.shape == data.act.shape == (50, 2)
    np.testing.assert_array_equal(data.obs_next, again.obs_next)
    assert not np.array_equal(data.obs, other.obs)
    np.testing.assert_allclose(data.obs_next, data.obs + 0.6 * data.act, atol=1e-5)  # actions scaled to [-1, 1]
    made = collect(Drift, n_steps=50, seed=1)
    np.testing.assert_allclose(made.obs_next, made.obs + 0.3 * made.act, atol=1e-5)  # as they are


def test_trajectories_are_contiguous_and_never_cross_an_end() -> None:
    data = collect(lambda: CounterEnv(), n_steps=200, seed=0)
    ended = data.terminated | data.truncated
    assert ended[:-1].any()
    horizon = longest_episode(data)
    for length in (1, 3, horizon):
        pieces = trajectories(data, length)
        n = len(pieces.state)
        assert pieces.state.shape == (n, length + 1, data.obs.shape[1])
        assert pieces.act.shape[:2] == (n, length)
        assert pieces.context.shape == (n, 0)
        for piece, act in zip(pieces.state, pieces.act, strict=True):
            (start,) = np.flatnonzero((data.obs == piece[0].numpy()).all(1) & (data.act == act[0].numpy()).all(1))[:1]
            np.testing.assert_array_equal(piece[:-1], data.obs[start : start + length])
            np.testing.assert_array_equal(piece[1:], data.obs_next[start : start + length])
            np.testing.assert_array_equal(act, data.act[start : start + length])
            assert not ended[start : start + length - 1].any()
    with pytest.raises(ValueError, match=f"horizon is {horizon + 1}, expected at most {horizon}"):
        trajectories(data, horizon + 1)


def test_rows_for_a_model_with_and_without_an_encoder() -> None:
    data = collect(Drift, n_steps=30, seed=0)
    task = TaskSpec.from_env(Drift())
    encoder = Encoder(task)
    oracle = Oracle.from_task(task, encoder, lambda state, context, actions: state[:, None])
    for rows in (transitions(data), transitions(data, WorldModel(encoder, oracle, task))):
        np.testing.assert_array_equal(rows.state, data.obs)
        np.testing.assert_array_equal(rows.state_next, data.obs_next)
        assert rows.context.shape == (30, 0)
    far = displaced(transitions(data), 2.0)
    torch.testing.assert_close(far.state.mean(0), torch.as_tensor(data.obs).mean(0))
    torch.testing.assert_close(far.state.std(0), 2 * torch.as_tensor(data.obs).std(0))
