import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments.run.config import from_json, to_dict
from tests.experiments.commands import read_metrics, run_evaluate, run_train
from tests.experiments.conftest import Refusal
from tests.loggers.wandb_reader import OfflineRun, read_offline_run

AGENTS = {
    "pets": {"plan", "model"},
    "sac": {"policy"},
    "goals": {"plan", "model", "policy"},
    "splates": {"plan", "model", "policy", "skill"},
    "splates-goals": {"plan", "model", "policy", "skill"},
    "dads": {"plan", "model", "policy", "skill"},
    "diayn": {"policy"},
    "random": set(),
}
"""Groups of metrics that an agent has besides those of all agents; DIAYN needs more steps before it has its own."""

MAZE = "ShortMaze-v0"
PICTURES = {
    "pets": {"model/predictions", "plan/maze"},
    "goals": {"plan/maze"},
    "splates": {"plan/maze", "skill/fan", "skill/coverage"},
    "diayn": {"skill/fan", "skill/coverage"},
}
PICTURES |= {"splates-goals": PICTURES["splates"], "dads": PICTURES["splates"], "sac": set(), "random": set()}


@pytest.fixture(autouse=True)
def lonely_wandb(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No key, no settings of this machine's user, nothing left of the test before."""
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


@pytest.fixture
def short_maze() -> None:
    """A maze whose episodes are over soon."""
    spec = gym.spec("Maze2D-Simple-v0")
    gym.register(MAZE, entry_point=spec.entry_point, kwargs=spec.kwargs, max_episode_steps=20)


def own(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what wandb adds."""
    return {key: value for key, value in row.items() if not key.startswith("_")}


def numbers(run: OfflineRun) -> list[dict[str, str]]:
    """Rows of metrics, as text, because not a number is not itself."""
    rows = ({key: value for key, value in own(row).items() if not isinstance(value, dict)} for row in run.rows)
    return [{key: repr(float(value)) for key, value in row.items()} for row in rows if len(row) > 1]


def media(run: OfflineRun) -> dict[str, tuple[str, bytes, int]]:
    """The last picture or video of each name: its kind, content, and number of environment steps."""
    return {
        key: (value["_type"], (run.files / value["path"]).read_bytes(), row["n_total_env_steps"])
        for row in run.rows
        for key, value in own(row).items()
        if isinstance(value, dict)
    }


@pytest.mark.parametrize(
    "agent", [agent if agent == "splates" else pytest.param(agent, marks=pytest.mark.slow) for agent in AGENTS]
)
@pytest.mark.usefixtures("short_maze")
def test_all_loggers_tell_the_same_of_each_agent(agent: str) -> None:
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
    assert all(re.fullmatch(r"[a-z]+/[a-z0-9_]+", name) for name in names)

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    assert set(events.Tags()["scalars"]) == names
    for name in names:
        told = [(float(row["n_total_env_steps"]), float(row[name])) for row in rows if name in row]
        scalars = [(float(event.step), event.value) for event in events.Scalars(name)]
        assert [step for step, _ in scalars] == [step for step, _ in told]
        assert [value for _, value in scalars] == pytest.approx([value for _, value in told], nan_ok=True)

    shown = media(run)
    assert shown.keys() == {"env/learning_curve", "env/policy"} | PICTURES[agent]
    assert set(events.Tags()["images"]) == shown.keys()
    assert {kind for kind, _, _ in shown.values()} == {"image-file", "video-file"}
    assert {step for _, _, step in shown.values()} == {60}
    assert len([row for row in run.rows if "skill/fan" in row]) in (0, 2)  # at 30 steps, and at the end

    (artifact,) = run.artifacts
    assert (artifact.name, artifact.kind, artifact.aliases) == ("r", "model", {"latest", run.run_id})


def test_an_offline_run_holds_its_names_and_pictures(tmp_path: Path) -> None:
    names = ["--wandb-project", "tests", "--wandb-group", "seeds", "--wandb-tags", "a", "b", "--wandb-job-type", "try"]
    run_train("pets", "--preset", "debug", "--no-tensorboard", "--name", "r", "--wandb", "offline", *names)
    folder = Path("runs/r")
    assert not (tmp_path / "wandb").exists()
    run = read_offline_run(folder)
    assert (run.project, run.group, run.job_type) == ("tests", "seeds", "try")
    assert (run.name, run.tags) == ("r", ("a", "b"))
    shown = media(run)
    for key, kind, file in [
        ("env/learning_curve", "image-file", "learning_curve.png"),
        ("model/predictions", "image-file", "model.png"),
        ("env/policy", "video-file", "policy.gif"),
    ]:
        assert shown.pop(key) == (kind, (folder / file).read_bytes(), 60)
    assert not shown


def test_it_is_off_unless_asked_for(trained: Path) -> None:
    assert not (trained / "wandb").exists()


# ------------------------------------------------------------------ the model


@pytest.fixture
def logged() -> OfflineRun:
    """A run with a replay, as it waits for its upload."""
    quick = ("--preset", "debug", "--no-pictures", "--no-tensorboard", "--name", "a=b c", "--wandb", "offline")
    run_train("pets", *quick)
    return read_offline_run(Path("runs/a=b c"))


def told_of(*args: object, capsys: pytest.CaptureFixture[str]) -> str:
    """What an evaluation says, but for where the run is."""
    capsys.readouterr()
    run_evaluate(*args, "--episodes", 2)
    return "\n".join(
        line for line in capsys.readouterr().out.splitlines() if line.startswith(("│ return", "│ length", "│ trained"))
    )


def test_the_model_plays_as_the_run_does(
    logged: OfflineRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path("runs/a=b c")
    (artifact,) = logged.artifacts
    assert (artifact.name, artifact.kind, artifact.aliases) == ("a-b-c", "model", {"latest", logged.run_id})
    checkpoint = "checkpoints/000000000060"
    assert artifact.files.keys() == {"config.json", f"{checkpoint}/manifest.json", f"{checkpoint}/state.pt"}
    assert all(path.is_absolute() for path in artifact.files.values())  # `wandb sync` may be called elsewhere
    assert list((folder / "checkpoints" / "segments").iterdir())  # the replay, which is not sent
    expected = told_of(folder, capsys=capsys)
    assert "trained for │ 60 environment steps" in expected
    assert told_of(artifact.download(Path("downloaded")), capsys=capsys) == expected

    asked: list[tuple[str, str]] = []

    class Artifact:
        def download(self, root: str) -> str:
            return str(artifact.download(Path(root)))

    class Api:
        def artifact(self, name: str, type: str) -> Artifact:
            asked.append((name, type))
            return Artifact()

    monkeypatch.setattr(wandb, "Api", Api)
    assert told_of("wandb:me/tests/a-b-c:latest", capsys=capsys) == expected
    assert asked == [("me/tests/a-b-c:latest", "model")]


def test_the_model_stays_what_it_was_when_the_run_goes_on(logged: OfflineRun) -> None:
    (artifact,) = logged.artifacts
    before = {name: path.read_bytes() for name, path in artifact.files.items()}
    arguments = ("--preset", "debug", "--no-pictures", "--no-tensorboard", "--name", "a=b c", "--wandb", "off")
    run_train("pets", *arguments, "--trainer.n-total-env-steps", 200)
    assert not (Path("runs/a=b c") / "checkpoints" / "000000000060").exists()
    assert {name: path.read_bytes() for name, path in artifact.files.items()} == before


def test_a_model_that_cannot_be_downloaded_is_one_line(refusal: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    line = refusal(run_evaluate, "wandb:me/tests/r:latest")
    assert "wandb:me/tests/r:latest cannot be downloaded: No API key configured" in line
    for error in (wandb.errors.CommError("artifact 'me/tests/r:latest' not found"), ValueError("no such name")):

        def fail(error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(wandb, "Api", fail)
        assert f"cannot be downloaded: {error}" in refusal(run_evaluate, "wandb:me/tests/r:latest")
