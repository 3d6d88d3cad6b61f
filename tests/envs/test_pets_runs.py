"""Tasks of PETS in vector environments, and with an agent that stops within an episode and resumes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("mujoco")

from layeredrl.environments import Vectorization, make_vector_env
from tests.envs.test_pets_tasks import IDS
from tests.experiments.commands import QUICK, assert_same_run, run_train, signal_at


@pytest.mark.parametrize(("env_id", "n_envs"), list(zip(IDS, (3, 1, 3, 1), strict=True)))
def test_a_resumed_run_equals_an_uninterrupted_one(
    env_id: str, n_envs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    n_threads = torch.get_num_threads()
    arguments = ("pets", *QUICK, "--env", env_id, "--n-envs", n_envs, "--trainer.n-total-env-steps", 45)
    run_train(*arguments, "--name", "whole")
    with signal_at(33), pytest.raises(SystemExit):
        run_train(*arguments, "--name", "r")
    run_train(*arguments, "--name", "r")
    torch.set_num_threads(n_threads)
    assert_same_run(Path("runs/r"), Path("runs/whole"))


@pytest.mark.parametrize("env_id", IDS)
def test_async_environments_equal_sync_ones(env_id: str) -> None:
    def play(vectorization: Vectorization) -> list[Any]:
        env = make_vector_env(env_id, 2, vectorization=vectorization)
        env.action_space.seed(0)
        try:
            return [env.reset(seed=5)[0].copy(), *(env.step(env.action_space.sample())[0].copy() for _ in range(5))]
        finally:
            env.close()

    np.testing.assert_array_equal(play("async"), play("sync"))
