import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import gymnasium as gym
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

import tests.experiments.tasks  # noqa: F401  registers OwnDrift-v0
from experiments.run import finish
from experiments.run.held_out import collect_held_out
from tests.experiments.commands import QUICK, all_files, run_train

Refusal = Callable[..., str]


@pytest.fixture(autouse=True, scope="session")
def few_held_out_steps() -> Iterator[None]:
    """Draw the pictures at the end of a run from a tenth of the steps: planning them takes longer than most runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finish, "collect_held_out", partial(collect_held_out, n_steps=40))
        yield


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Work in an empty folder; afterwards restore the registered environments and the threads of torch.

    Nothing waits for the disk, which takes time and matters only when the machine loses power.
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
    """Calls a command that has to refuse its input, and returns its one line; no file may change."""

    def refuse(command: Callable[..., None], *args: object) -> str:
        before = all_files(tmp_path)
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            command(*args)
        output, error = capsys.readouterr()
        assert stop.value.code == 2
        assert output == ""
        assert error.startswith("error: ")
        assert error.count("\n") == 1, error
        assert all_files(tmp_path) == before
        return error

    return refuse


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of PETS with 60 steps, not to be changed."""
    runs = tmp_path_factory.mktemp("runs")
    run_train("pets", *QUICK, "--runs-dir", runs, "--name", "trained")
    return runs / "trained"


@pytest.fixture(scope="session")
def drift_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of PETS on OwnDrift-v0, where the reward is learned; not to be changed."""
    runs = tmp_path_factory.mktemp("runs")
    run_train("pets", *QUICK, "--env", "OwnDrift-v0", "--runs-dir", runs, "--name", "drift")
    return runs / "drift"


@pytest.fixture(scope="session")
def random_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of random actions on OwnDrift-v0, not to be changed."""
    runs = tmp_path_factory.mktemp("runs")
    run_train("random", *QUICK, "--env", "OwnDrift-v0", "--runs-dir", runs, "--name", "random")
    return runs / "random"


@pytest.fixture
def without_video(monkeypatch: pytest.MonkeyPatch) -> None:
    """No run records a video, which takes longer than its training."""
    monkeypatch.setattr(finish, "can_render", lambda env_id: False)


@pytest.fixture
def blank_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every figure is saved as one pixel: drawing takes longer than most trainings, and other tests look at figures."""

    def save(figure: Figure, file: Path, **settings: object) -> None:
        Image.new("RGB", (1, 1)).save(file, "PNG")

    monkeypatch.setattr(Figure, "savefig", save)


@pytest.fixture
def lonely_wandb(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Neither a key, nor settings of this machine's user, nor state of the test before."""
    import wandb

    for name in ("API_KEY", "MODE", "DIR", "IDENTITY_TOKEN_FILE", "RUN_ID", "SWEEP_ID", "SWEEP_PARAM_PATH"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(home / "config"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    wandb.teardown()
    yield
    wandb.teardown()
