from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb

from experiments.config import from_json, to_dict
from tests.experiments.commands import read_metrics, run_train
from tests.loggers.wandb_reader import read_offline_run


@pytest.fixture(autouse=True)
def lonely_wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No key, no settings of this machine's user, nothing left of the test before."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "home" / "config"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    wandb.teardown()
    yield
    wandb.teardown()


def test_an_offline_run_holds_config_metrics_pictures_and_video(tmp_path: Path) -> None:
    names = ["--wandb-project", "tests", "--wandb-group", "seeds", "--wandb-tags", "a", "b"]
    run_train("pets", "--preset", "debug", "--no-tensorboard", "--name", "r", "--wandb", "offline", *names)
    folder = Path("runs/r")
    assert not (tmp_path / "wandb").exists()
    run = read_offline_run(folder)
    assert (run.project, run.group, run.name, run.tags) == ("tests", "seeds", "r", ("a", "b"))
    assert run.config == to_dict(from_json(folder / "config.json"))
    assert run.step_metrics["*"] == "n_total_env_steps"

    logged = [{key: value for key, value in row.items() if not key.startswith("_")} for row in run.rows]
    rows = [{key: float(value) for key, value in row.items() if value} for row in read_metrics(folder)]
    assert logged[: len(rows)] == rows
    media = {key: (value, row) for row in logged[len(rows) :] for key, value in row.items() if isinstance(value, dict)}
    for key, kind, file in [
        ("env/learning_curve", "image-file", "learning_curve.png"),
        ("model/predictions", "image-file", "model.png"),
        ("env/policy", "video-file", "policy.gif"),
    ]:
        value, row = media[key]
        assert value["_type"] == kind
        assert (run.files / value["path"]).read_bytes() == (folder / file).read_bytes()
        assert row["n_total_env_steps"] == 60
    assert len(logged) == len(rows) + len(media)


def test_it_is_off_unless_asked_for(trained: Path) -> None:
    assert not (trained / "wandb").exists()
