import re
import shutil
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments.pictures import while_training
from experiments.pictures.fans import FanSettings
from experiments.run.config import from_json, to_dict
from tests.experiments.commands import QUICK, read_metrics, run_evaluate, run_train
from tests.experiments.conftest import Refusal
from tests.loggers.wandb_reader import OfflineRun, read_offline_run

pytestmark = pytest.mark.usefixtures("lonely_wandb")

AGENTS = {
    "pets": {"plan", "model"},
    "sac": {"policy"},
    "mbpo": {"model", "policy", "imagination", "unseen"},
    "loop": {"plan", "model", "policy", "imagination", "unseen"},
    "tdmpc2": {"plan", "model"},
    "goals": {"plan", "model", "policy"},
    "splates": {"plan", "model", "policy", "skill"},
    "splates-goals": {"plan", "skills", "goals"},  # its two policies report under the names of their levels
    "dads": {"plan", "model", "policy", "skill"},
    "diayn": {"policy", "skill"},
    "random": set(),
}
"""Groups of metrics of each agent besides those of all agents; DIAYN needs more steps before it has its own."""

MAZE = "ShortMaze-v0"
PICTURES = {
    "pets": {"model/predictions", "plan/maze"},
    "mbpo": {"model/predictions"},
    "loop": {"model/predictions", "plan/maze"},
    "tdmpc2": {"model/predictions"},
    "goals": {"plan/maze"},
    "splates": {"plan/maze", "skill/fan", "skill/coverage"},
    "diayn": {"skill/fan", "skill/coverage"},
}
PICTURES |= {"splates-goals": PICTURES["splates"], "dads": PICTURES["splates"], "sac": set(), "random": set()}


@pytest.fixture
def short_maze() -> None:
    """A maze with short episodes."""
    spec = gym.spec("Maze2D-Simple-v0")
    gym.register(MAZE, entry_point=spec.entry_point, kwargs=spec.kwargs, max_episode_steps=20)


def own(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row without the entries that wandb adds."""
    return {key: value for key, value in row.items() if not key.startswith("_")}


def numbers(run: OfflineRun) -> list[dict[str, str]]:
    """Return rows of metrics as text, because NaN does not equal itself."""
    rows = ({key: value for key, value in own(row).items() if not isinstance(value, dict)} for row in run.rows)
    return [{key: repr(float(value)) for key, value in row.items()} for row in rows if len(row) > 1]


def media(run: OfflineRun) -> dict[str, tuple[str, bytes, int]]:
    """Return the last picture or video of each name: its kind, content, and number of environment steps."""
    return {
        key: (value["_type"], (run.files / value["path"]).read_bytes(), row["n_total_env_steps"])
        for row in run.rows
        for key, value in own(row).items()
        if isinstance(value, dict)
    }


@pytest.mark.parametrize(
    "agent", [agent if agent == "splates" else pytest.param(agent, marks=pytest.mark.slow) for agent in AGENTS]
)
@pytest.mark.usefixtures("short_maze", "blank_figures")
def test_all_loggers_hold_the_same(agent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(while_training, "FAN", FanSettings(starts=2, skills=3, walk=0))
    often = ("--trainer.eval-every", 30, "--trainer.eval-episodes", 1, "--trainer.pictures-every", 30)
    run_train(agent, "--preset", "debug", "--env", MAZE, *often, "--name", "r", "--wandb", "offline")
    folder = Path("runs/r")
    run = read_offline_run(folder)
    assert run.config == to_dict(from_json(folder / "config.json"))
    assert run.step_metrics == {"n_total_env_steps": "", "*": "n_total_env_steps"}
    assert all("n_total_env_steps" in row for row in run.rows)

    rows = [{key: repr(float(value)) for key, value in row.items() if value} for row in read_metrics(folder)]
    assert numbers(run) == rows
    names = {key for row in rows for key in row} - {"n_total_env_steps"}
    assert {name.partition("/")[0] for name in names} == {"env", "eval", "time"} | AGENTS[agent]
    assert all(re.fullmatch(r"([a-z]+/)?[a-z]+/[a-z0-9_]+", name) for name in names)

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    assert set(events.Tags()["scalars"]) == names
    for name in names:
        expected = [(float(row["n_total_env_steps"]), float(row[name])) for row in rows if name in row]
        scalars = [(float(event.step), event.value) for event in events.Scalars(name)]
        assert [step for step, _ in scalars] == [step for step, _ in expected]
        assert [value for _, value in scalars] == pytest.approx([value for _, value in expected], nan_ok=True)

    shown = media(run)
    assert shown.keys() == {"env/learning_curve", "env/policy"} | PICTURES[agent]
    assert set(events.Tags()["images"]) == shown.keys()
    assert {kind for kind, _, _ in shown.values()} == {"image-file", "video-file"}
    assert {step for _, _, step in shown.values()} == {60}
    assert len([row for row in run.rows if "skill/fan" in row]) in (0, 2)  # at 30 steps, and at the end

    (artifact,) = run.artifacts
    assert (artifact.name, artifact.kind, artifact.aliases) == ("r", "model", {"latest", run.run_id})


def test_wandb_is_off_by_default(trained: Path) -> None:
    assert not (trained / "wandb").exists()


# ------------------------------------------------------------------ names, pictures and the model


def evaluation(*args: object, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The results of an evaluation, without the name of the run."""
    capsys.readouterr()
    run_evaluate(*args, "--episodes", 1)
    return [x for x in capsys.readouterr().out.splitlines() if x.startswith(("│ return", "│ length", "│ trained"))]


@pytest.mark.usefixtures("blank_figures")
def test_an_offline_run_holds_names_pictures_and_a_model_that_plays_as_the_run_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["--wandb-project", "tests", "--wandb-group", "seeds", "--wandb-tags", "a", "b", "--wandb-job-type", "try"]
    run_train("pets", "--preset", "debug", "--no-tensorboard", "--name", "a=b c", "--wandb", "offline", *names)
    folder = Path("runs/a=b c")
    assert not (tmp_path / "wandb").exists()
    run = read_offline_run(folder)
    assert (run.project, run.group, run.job_type) == ("tests", "seeds", "try")
    assert (run.name, run.tags) == ("a=b c", ("a", "b"))
    shown = media(run)
    for key, kind, file in [
        ("env/learning_curve", "image-file", "learning_curve.png"),
        ("model/predictions", "image-file", "model.png"),
        ("env/policy", "video-file", "policy.gif"),
    ]:
        assert shown.pop(key) == (kind, (folder / file).read_bytes(), 60)
    assert not shown

    (artifact,) = run.artifacts
    assert (artifact.name, artifact.kind, artifact.aliases) == ("a-b-c", "model", {"latest", run.run_id})
    checkpoint = "checkpoints/000000000060"
    assert artifact.files.keys() == {"config.json", f"{checkpoint}/manifest.json", f"{checkpoint}/state.pt"}
    assert all(path.is_absolute() for path in artifact.files.values())  # `wandb sync` may be called elsewhere
    assert list((folder / "checkpoints" / "segments").iterdir())  # the replay, which is not sent
    expected = evaluation(folder, capsys=capsys)
    assert "60 environment steps" in expected[0]
    assert evaluation(artifact.download(Path("downloaded")), capsys=capsys) == expected

    requests: list[tuple[str, str]] = []

    class Artifact:
        def download(self, root: str) -> str:
            return str(artifact.download(Path(root)))

    class Api:
        def artifact(self, name: str, type: str) -> Artifact:
            requests.append((name, type))
            return Artifact()

    monkeypatch.setattr(wandb, "Api", Api)
    assert evaluation("wandb:me/tests/a-b-c:latest", capsys=capsys) == expected
    assert requests == [("me/tests/a-b-c:latest", "model")]


def test_the_logged_model_does_not_need_the_checkpoint() -> None:
    run_train("random", *QUICK, "--wandb", "offline", "--name", "r")
    (artifact,) = read_offline_run(Path("runs/r")).artifacts
    before = {name: path.read_bytes() for name, path in artifact.files.items()}
    shutil.rmtree("runs/r/checkpoints")  # as a run does that is resumed
    assert {name: path.read_bytes() for name, path in artifact.files.items()} == before


def test_a_failed_download_is_one_line(refusal: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    line = refusal(run_evaluate, "wandb:me/tests/r:latest")
    assert "wandb:me/tests/r:latest cannot be downloaded: No API key configured" in line
    for error in (wandb.errors.CommError("artifact 'me/tests/r:latest' not found"), ValueError("no such name")):

        def fail(error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(wandb, "Api", fail)
        assert f"cannot be downloaded: {error}" in refusal(run_evaluate, "wandb:me/tests/r:latest")
