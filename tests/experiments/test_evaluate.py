import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import pytest
import torch

from layeredrl.storage import Checkpoints
from tests.experiments.commands import QUICK, all_files, change_state, fit_manifest, newest, run_evaluate, run_train
from tests.experiments.conftest import Refusal


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of a run, which may be changed."""
    shutil.copytree(trained, tmp_path / "r")
    return tmp_path / "r"


def _row(table: str, name: str) -> str:
    """Return the value of a row of the closing table."""
    (value,) = re.findall(rf"│ {name} +│ (.*?) +│", table)
    return value


def test_the_same_seed_plays_the_same_episodes(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, tables = all_files(trained), []
    for seed in (1, 1, 2):
        run_evaluate(trained, "--episodes", 2, "--seed", seed)
        tables.append(capsys.readouterr().out)
    assert all_files(trained) == before
    assert tables[0] == tables[1]
    assert tables[0] != tables[2]
    assert _row(tables[0], "run") == str(trained)
    assert _row(tables[0], "episodes") == "2"
    assert _row(tables[0], "trained for") == "60 environment steps"
    mean, low, high = re.findall(r"[\d.]+", re.sub(r"±\s*[\d.]+", "", _row(tables[0], "return")))
    assert 8 <= float(low) <= float(mean) <= float(high) <= 200
    assert _row(tables[0], "length") == mean  # a reward of one for each step


def test_the_networks_of_the_checkpoint_play(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_evaluate(folder, "--episodes", 2)
    before = capsys.readouterr().out

    def change(state: dict[str, Any]) -> None:
        world = state["agent"]["planner"]["learner"]["world"]
        for name, tensor in world.items():
            if tensor.is_floating_point():
                world[name] = torch.full_like(tensor, 0.1)

    change_state(folder, change)
    run_evaluate(folder, "--episodes", 2)
    assert capsys.readouterr().out != before


def test_the_best_checkpoint_can_be_played(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints = Checkpoints(folder / "checkpoints")
    state = checkpoints.load()
    checkpoints.save({**state, "n_total_env_steps": 61}, 61, score=1e6)
    checkpoints.save({**state, "n_total_env_steps": 62}, 62, score=0.0)
    for arguments, steps in (([], 62), (["--best"], 61)):
        run_evaluate(folder, "--episodes", 1, *arguments)
        assert _row(capsys.readouterr().out, "trained for") == f"{steps} environment steps"


def test_settings_may_be_others_than_in_training(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables = []
    for changes in ([], ["planner.icem.n-samples=9"], ["planner.icem.n-samples=9", "planner.icem.noise_exponent=0.5"]):
        run_evaluate(trained, "--episodes", 1, *(word for x in changes for word in ("--change", x)))
        tables.append(capsys.readouterr().out)
    assert "changed" not in tables[0]
    assert _row(tables[1], "changed") == "planner.icem.n-samples=9"
    assert _row(tables[2], "changed").endswith("noise_exponent=0.5")


def test_a_video_is_written(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_evaluate(trained, "--episodes", 1, "--seed", 3, "--video", "policy.GIF")
    table = capsys.readouterr().out
    (length,) = re.findall(r"policy\.GIF \(return ([\d.]+)\)", _row(table, "video"))
    assert len(iio.imread("policy.GIF", extension=".gif")) == -(-(int(float(length)) + 1) // 2)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--episodes", 0], "error: --episodes is 0, expected at least 1"),
        (["--seed", -1], "error: --seed is -1, expected at least 0"),
        (["--video", "policy.mp4"], "video is policy.mp4, expected a name that ends in .gif"),
        (["--video", "nowhere/policy.gif"], "nowhere/policy.gif cannot be written"),
        (["--device", "abacus"], "device is 'abacus'"),
        (["--no-such-flag"], "--no-such-flag"),
        (["--change", "planner"], "change is 'planner', expected NAME=VALUE"),
        (["--change", "planner.icem.samples=9"], "planner.icem.samples is no setting of pets"),
        (["--change", "planner.icem.n_samples=many"], "settings.planner.icem.n_samples: Input should be a valid int"),
        (["--change", "planner.icem.n_samples=0"], "n_samples is 0"),
    ],
)
def test_bad_arguments(arguments: list[object], part: str, trained: Path, refusal: Refusal) -> None:
    assert part in refusal(run_evaluate, trained, *arguments)


def test_no_run(tmp_path: Path, refusal: Refusal) -> None:
    assert "run" in refusal(run_evaluate).lower()
    assert "error: nowhere/config.json cannot be read" in refusal(run_evaluate, "nowhere")
    (tmp_path / "empty").mkdir()
    assert "empty/config.json cannot be read" in refusal(run_evaluate, "empty")


def test_no_video_of_an_environment_that_cannot_render(random_run: Path, refusal: Refusal) -> None:
    line = refusal(run_evaluate, random_run, "--video", "policy.gif")
    assert "environment OwnDrift-v0 cannot render an rgb_array" in line


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"seed": "one"}, "seed"),
        ({"seed": -1}, "seed is -1"),
        ({"n_envs": None}, "n_envs"),
        ({"threads": 2**40}, "threads is 1099511627776, expected at most 1024"),
        ({"env_timeout": 0}, "env_timeout is 0.0, expected a positive number of seconds"),
        ({"max_env_faults": -1}, "max_env_faults is -1, expected at least 0"),
        ({"vectorization": "native"}, "'envs:ContinuousCartPole-v0' is not registered as a vector environment"),
        ({"env_timout": 1}, "env_timout is unknown; did you mean env_timeout?"),
        ({"trainer": {"eval_evry": 1}}, "trainer.eval_evry is unknown; did you mean trainer.eval_every?"),
        ({"settings": {"xyz": {}}}, "settings.xyz is unknown"),
        ({"agent": "pest"}, "unknown agent 'pest'"),
        ({"agent": "os:system"}, "'os:system'"),
        ({"agent": 5}, "agent"),
        ({"env": "Nothing-v0"}, "unknown environment 'Nothing-v0'"),
        ({"env": "OwnDrift-v0"}, "checkpoints does not fit the settings in config.json"),
        ({"settings": {"planner": {"kind": "tarot"}}}, "settings.planner.kind"),
        ({"settings": {"planner": {"icem": {"n_elites": 0}}}}, "n_elites is 0"),
    ],
)
def test_settings_that_were_changed(changes: dict[str, Any], part: str, folder: Path, refusal: Refusal) -> None:
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | changes))
    assert part in refusal(run_evaluate, folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe\x00", b"{}"])
def test_a_damaged_config(content: bytes, folder: Path, refusal: Refusal) -> None:
    (folder / "config.json").write_bytes(content)
    assert f"{folder}/config.json does not hold the settings of a run" in refusal(run_evaluate, folder)


@pytest.mark.parametrize("keep", [0, -100])
def test_a_damaged_checkpoint(keep: int, folder: Path, refusal: Refusal) -> None:
    path = newest(folder) / "state.pt"
    path.write_bytes(path.read_bytes()[:keep])
    line = refusal(run_evaluate, folder)
    assert f"error: {path} has {path.stat().st_size} bytes, expected" in line
    assert f"with {newest(folder)} removed the run would resume from {folder}/checkpoints/000000000030" in line


def test_no_checkpoint(folder: Path, refusal: Refusal) -> None:
    shutil.rmtree(folder / "checkpoints")
    assert f"there is no checkpoint in {folder}/checkpoints" in refusal(run_evaluate, folder)


def test_a_checkpoint_of_other_shapes(folder: Path, refusal: Refusal) -> None:
    settings = json.loads((folder / "config.json").read_text())
    settings["settings"]["model"]["hidden"] = [8]
    (folder / "config.json").write_text(json.dumps(settings))
    line = refusal(run_evaluate, folder)
    assert f"{folder}/checkpoints does not fit the settings in config.json" in line
    assert "size mismatch" in line
    assert len(line) < 500


def test_parameters_of_nan(folder: Path, refusal: Refusal) -> None:
    def change(state: dict[str, Any]) -> None:
        world = state["agent"]["planner"]["learner"]["world"]
        name = next(name for name, tensor in world.items() if name.endswith("weight") and tensor.is_floating_point())
        world[name][..., 0] = torch.nan

    change_state(folder, change)
    line = refusal(run_evaluate, folder)
    assert f"checkpoint of 60 steps in {folder}/checkpoints holds NaN in agent.planner.learner.world." in line


def test_a_checkpoint_of_another_run(trained: Path, tmp_path: Path, refusal: Refusal) -> None:
    """Also of one with the same settings; a run that was copied as a whole can be played and trained on."""
    run_train("random", *OWN, "--name", "a")
    run_train("random", *OWN, "--name", "b")
    a, b = Path("runs/a"), Path("runs/b")
    shutil.copytree(a, "runs/copy")
    for checkpoint in (b / "checkpoints").glob("0*"):
        shutil.rmtree(checkpoint)
    shutil.copytree(newest(a), b / "checkpoints" / newest(a).name)
    for command in (partial(run_evaluate, b), partial(run_train, "random", *OWN, "--name", "b")):
        line = refusal(command)
        assert f"{newest(b)} is a checkpoint of another run, {(a / 'run_id').read_text()}, expected one of" in line
    run_evaluate("runs/copy", "--episodes", 1)
    run_train("random", *OWN, "--trainer.n-total-env-steps", 90, "--name", "copy")
    assert newest(Path("runs/copy")).name == "000000000090"


def test_runs_of_older_versions_have_no_id(trained: Path) -> None:
    shutil.copytree(trained, "runs/r")
    Path("runs/r/run_id").unlink()
    run_evaluate("runs/r", "--episodes", 1)
    run_train("pets", *QUICK, "--trainer.n-total-env-steps", 70, "--name", "r")
    assert Path("runs/r/run_id").read_text() == (trained / "run_id").read_text()  # of its checkpoints


OWN = (*QUICK, "--env", "OwnDrift-v0")


@pytest.mark.parametrize("state", [{}, {"agent": {}}, {"agent": {"0": {}}, "n_total_env_steps": 5}, {"agent": 3}])
def test_a_checkpoint_of_something_else(state: dict[str, Any], folder: Path, refusal: Refusal) -> None:
    def change(whole: dict[str, Any]) -> None:
        whole.clear()
        whole.update(state)

    change_state(folder, change)
    assert "checkpoints does not fit the settings in config.json" in refusal(run_evaluate, folder)


class _Malice:
    def __reduce__(self):
        return Path.touch, (Path("owned"),)


def test_loading_runs_no_code(folder: Path, refusal: Refusal) -> None:
    torch.save({"format": 1, "state": {"agent": _Malice()}}, newest(folder) / "state.pt")
    fit_manifest(folder)
    assert "is not a readable checkpoint" in refusal(run_evaluate, folder)  # and makes no file
