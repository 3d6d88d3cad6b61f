import os
from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import pytest
import torch

import tests.experiments.tasks  # noqa: F401  registers OwnDrift-v0
from tests.experiments.commands import QUICK, all_files, run_train

Refusal = Callable[..., str]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs go to an empty folder; environments that a test registers are gone after it, and torch has its threads.

    Nothing waits for the disk: that takes time, and shows nothing as long as the machine does not lose its power.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    registered, n_threads = dict(gym.registry), torch.get_num_threads()
    yield
    torch.set_num_threads(n_threads)
    gym.registry.clear()
    gym.registry.update(registered)


@pytest.fixture
def refusal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refusal:
    """Calls a command that has to fail on bad input, and returns its one line."""

    def refuse(command: Callable[..., None], *args: object) -> str:
        before = all_files(tmp_path)
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            command(*args)
        said, complained = capsys.readouterr()
        assert stop.value.code == 2
        assert said == ""
        assert complained.startswith("error: ")
        assert complained.count("\n") == 1, complained
        assert all_files(tmp_path) == before
        return complained

    return refuse


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of PETS, not to be changed."""
    runs = tmp_path_factory.mktemp("runs")
    run_train("pets", *QUICK, "--runs-dir", runs, "--name", "trained")
    return runs / "trained"
