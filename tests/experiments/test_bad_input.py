"""Bad input: one line that names the cause, and no file changed.

`python -m tests.experiments.test_bad_input` prints experiments/results/bad_inputs.md.
"""

import contextlib
import io
import os
import re
import shutil
import tempfile
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from experiments.run import folder as run
from tests.experiments.commands import QUICK, all_files, read_state, run_train
from tests.experiments.conftest import Refusal
from tests.experiments.damage import DAMAGES, OWNED, Damage, put_run
from tests.experiments.faults import FAULTS, Fault
from tests.experiments.tasks import Drift

SETTINGS = [
    (["pets", "--env", "ContinousCartPole-v0"], ["'ContinousCartPole-v0'", "did you mean ContinuousCartPole-v0"]),
    (["pets", "--env", "Nothing-like-it-v7"], ["'Nothing-like-it-v7'", "not registered"]),
    (["pets", "--env", "no_such_package:Cart-v0"], ["'no_such_package:Cart-v0'", "No module named"]),
    (["pest"], ["unknown agent 'pest'", "did you mean pets?", "random"]),
    (["no_such_package:Agent"], ["'no_such_package:Agent'", "No module named 'no_such_package'"]),
    (["agents.pets:PLANETS"], ["'agents.pets:PLANETS'", "has no attribute 'PLANETS'"]),
    ([".pets:PETS"], ["unknown agent '.pets:PETS'"]),
    (["os:system"], ["'os:system'", "dataclass", "build"]),
    (["tests.experiments.own_agents:NoDataclass"], [":NoDataclass'", "is not a dataclass"]),
    (["tests.experiments.own_agents:Strange"], [":Strange'", "Tensor"]),
    (["--seed", "1", "random"], ["agent 'random' has to come first"]),
    (["pets", "random"], ["Unrecognized", "random"]),
    (["pets", "--env", "__import__('os').system('touch owned')"], ["error: "]),
    (["pets", "--name", "__import__('os').system('touch ./owned')"], ["without slashes"]),
    (["pets", "--model.hidden", "__import__('os').getpid()"], ["--model.hidden"]),
    (["pets", "--trainer.eval-every", "!!python/object/apply:os.getpid []"], ["--trainer.eval-every"]),
    (["pets", "--trainer.n-total-env-steps", "-5"], ["--trainer.n-total-env-steps is -5, expected at least 1"]),
    (["pets", "--trainer.eval-every", "-1"], ["--trainer.eval-every is -1"]),
    (["pets", "--n-envs", "0"], ["--n-envs is 0, expected at least 1"]),
    (["pets", "--seed", "-1"], ["--seed is -1, expected a number in"]),
    (["pets", "--preset", "demonstration"], ["unknown preset 'demonstration'", "demo, debug, paper"]),
    (["pets", "--device", "abacus"], ["device is 'abacus'", "cpu, cuda or cuda:N"]),
    (["pets", "--device", "cuda:99"], ["device is 'cuda:99'", "GPUs here"]),
    (["pets", "--name", "a/b"], ["name is 'a/b'", "without slashes"]),
    (["pets", "--name", ".."], ["name is '..'"]),
    (["pets", "--name", ""], ["name is ''"]),
    (["pets", "--planner.icem.n-elites", "1000"], ["--planner.icem.n-elites is 1000, expected at most n_samples"]),
    (["pets", "--model.hidden", "16", "0"], ["--model.hidden is (16, 0)"]),
    (["pets", "--model.weight-decay", "1", "2", "3"], ["--model.weight-decay has 3 values"]),
    (["pets", "--discount", "nan"], ["--discount is nan"]),
    (["sac", "--algorithm", "ppo"], ["'ppo'", "--algorithm", "sac", "td3"]),
    (
        ["sac", "--env", "CartPole-v1"],
        ["the action space is Discrete(2), expected a flat Box of [-1, 1]"],
    ),
    (["sac", "--learning.updates-per-transition", "-1"], ["--learning.updates-per-transition is -1.0"]),
    (["pets", "--threads", str(2**40)], ["--threads is 1099511627776, expected at most 1024"]),
    (["pets", "--n-envs", str(2**40)], ["--n-envs is 1099511627776, expected at most 1048576"]),
    (["pets", "--env-timeout", "nan"], ["--env-timeout is nan, expected a positive number of seconds"]),
    (["pets", "--max-env-faults", "-1"], ["--max-env-faults is -1, expected at least 0"]),
    (["pets", "--wandb", "offline", "--wandb-project", "a/b"], ["--wandb-project is 'a/b', with /, expected"]),
    (["pets", "--wandb", "offline", "--wandb-project", ""], ["--wandb-project is '', expected 1 to 128 characters"]),
    (["pets", "--wandb", "offline", "--wandb-group", "g" * 129], ["--wandb-group is 'ggg", "at most 128 characters"]),
    (
        ["pets", "--wandb", "offline", "--wandb-tags", "a", ""],
        ["--wandb-tags has '', expected 1 to 64 characters each"],
    ),
    (["pets", "--wandb", "sometimes"], ["'sometimes'", "--wandb", "offline"]),
    (["pets", "--seed", "one"], ["--seed", "'one'"]),
    (["pets", "--seed"], ["--seed", "Missing value"]),
    (["pets", "--trainer.n-total-steps", "5"], ["--trainer.n-total-steps", "--trainer.n-total-env-steps"]),
    (["pets", "--lr", "0.1"], ["Unrecognized options: --lr", "for --lr use --model.learning-rate"]),
    (["pets", "--action-repeat", "0"], ["--action-repeat is 0, expected at least 1"]),
    (["pets", "--env-kwargs", "g"], ["--env-kwargs: got 'g', expected KEY=VALUE, or one JSON object"]),
    (["pets", "--env", "Pendulum-v1", "--env-kwargs", "mass=1"], ["cannot be made: TypeError:", "'mass'"]),
    (["pets", "--wrappers", "nowhere:Wrapper"], ["unknown wrapper 'nowhere:Wrapper': No module named 'nowhere'"]),
    (
        ["pets", "--env", "Maze2D-Simple-v0", "--vectorization", "native", "--action-repeat", "2"],
        ["--vectorization is 'native' with --wrappers or --action-repeat, expected sync or async"],
    ),
    (
        ["pets", "--env", "Maze2D-Simple-v0", "--env-device", "cpu"],
        ["--env-device is 'cpu' with vectorization sync, expected native"],
    ),
    (["pets", "--env-device", "tpu"], ["--env-device is 'tpu', expected cpu, cuda or cuda:N"]),
    (["dads", "--env", "ContinuousCartPole-v0"], ["--state is ['achieved_goal']", "such as --env Maze2D-Medium-v0"]),
    (["pets", "--preset", "debug", "--agent"], ["Unrecognized options: --agent"]),
]
"""Command lines, and parts of the message about them."""


def _with_preset(arguments: list[str]) -> list[str]:
    return [*arguments, *([] if any(a.startswith("--preset") for a in arguments) else ["--preset", "debug"])]


@pytest.mark.parametrize(("arguments", "parts"), SETTINGS)
def test_bad_settings(arguments: list[str], parts: list[str], refusal: Refusal) -> None:
    line = refusal(run_train, *_with_preset(arguments))
    for part in parts:
        assert part in line


def _box(*shape: int) -> spaces.Box:
    return spaces.Box(-1, 1, shape)


@pytest.mark.parametrize(
    ("message", "unfit"),
    [
        ("observation space is Discrete(5)", {"observation_space": spaces.Discrete(5)}),
        ("observation space has shape (8, 8, 3), expected one dimension", {"observation_space": _box(8, 8, 3)}),
        (
            "observation space 'camera' has shape (8, 8, 3), expected one dimension",
            {"observation_space": spaces.Dict(camera=_box(8, 8, 3))},
        ),
        ("observation space 'inner' is Dict", {"observation_space": spaces.Dict(inner=spaces.Dict(x=_box(2)))}),
        ("expected finite bounds", {"action_space": spaces.Box(-np.inf, np.inf, (2,), np.float32)}),
        ("action space has shape (2, 2)", {"action_space": _box(2, 2)}),
        ("MultiBinary(3)", {"action_space": spaces.MultiBinary(3)}),
    ],
)
def test_unfit_spaces(message: str, unfit: dict[str, spaces.Space], refusal: Refusal) -> None:
    gym.register("Unfit-v0", Drift, kwargs=unfit, max_episode_steps=5)
    assert message in refusal(run_train, "pets", *QUICK, "--env", "Unfit-v0")


@pytest.mark.parametrize("runs_dir", ["file", "file/below", "/proc/runs", "/dev/null"])
def test_folders_that_cannot_be_written(runs_dir: str, refusal: Refusal) -> None:
    Path("file").touch()
    line = refusal(run_train, "random", *QUICK, "--runs-dir", runs_dir)
    assert f"{runs_dir}/random-ContinuousCartPole-v0-0 cannot be written" in line


def test_a_name_that_is_too_long_leaves_no_folder(refusal: Refusal) -> None:
    assert "cannot be written: File name too long" in refusal(run_train, "random", *QUICK, "--name", "n" * 300)
    Path("runs").mkdir()
    assert "cannot be written: File name too long" in refusal(run_train, "random", *QUICK, "--name", "n" * 300)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not hold for root")
def test_a_folder_without_permission(refusal: Refusal) -> None:
    Path("runs").mkdir(mode=0o500)
    assert "Permission denied" in refusal(run_train, "random", *QUICK)


def test_a_full_disk_leaves_nothing(refusal: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_whole(path: Path, text: str) -> None:
        path.write_bytes(text[:100].encode())
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run, "write_whole", write_whole)
    assert "cannot be written: No space left on device" in refusal(run_train, "random", *QUICK)


@pytest.mark.parametrize(
    ("variable", "value", "part"),
    [("MODE", "sometimes", "'online', 'offline'"), ("RUN_ID", "a/b", "Run ID"), ("PROJECT", "a/b", "project name")],
)
def test_environment_variables_that_wandb_refuses(
    variable: str, value: str, part: str, refusal: Refusal, lonely_wandb: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"WANDB_{variable}", value)
    line = refusal(run_train, "random", *QUICK, "--wandb", "offline")
    assert "W&B refuses an environment variable WANDB_" in line
    assert part in line


def test_bad_input_leaves_a_run_as_it_is(random_run: Path, refusal: Refusal) -> None:
    shutil.copytree(random_run, "runs/r")
    line = refusal(run_train, "pets", *QUICK, "--name", "r")
    assert "runs/r holds a run with other settings: agent was 'random' and is 'pets'" in line
    assert "--fresh" in line
    assert "CartPole-v9" in refusal(run_train, "random", *QUICK, "--name", "r", "--fresh", "--env", "CartPole-v9")


@pytest.mark.parametrize("content", ['{"model_type": "bert"}', "[1, 2]", "no json", None])
def test_only_runs_are_replaced(content: str | None, refusal: Refusal) -> None:
    """A config.json alone makes no run: many programs write one."""
    folder = Path("runs/precious")
    folder.mkdir(parents=True)
    (folder / "photo.jpg").touch()
    if content is not None:
        (folder / "config.json").write_text(content)
    for fresh in ((), ("--fresh",)):
        line = refusal(run_train, "random", *QUICK, "--name", "precious", *fresh)
        assert "runs/precious exists and is not the folder of a run" in line


def test_a_file_is_never_replaced(refusal: Refusal) -> None:
    Path("runs").mkdir()
    Path("runs/notes").write_text("precious")
    line = refusal(run_train, "random", *QUICK, "--name", "notes", "--fresh")
    assert "runs/notes exists and is not the folder of a run" in line


def test_a_link_in_a_run_is_not_followed(random_run: Path, refusal: Refusal) -> None:
    shutil.copytree(random_run, "runs/r")
    Path("runs/r/results").symlink_to(random_run)
    line = refusal(run_train, "random", *QUICK, "--name", "r", "--fresh")
    assert "runs/r holds a symbolic link, results" in line


def test_help_is_not_an_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        run_train("pets", "--help-all")
    assert not stop.value.code
    output, error = capsys.readouterr()
    assert "--planner.icem.n-samples" in output
    assert "Number of candidates sampled in the first iteration." in output
    assert error == ""
    assert all_files(tmp_path) == {}


# ------------------------------------------------------------------ damaged files


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(damage, id=damage.name.replace(" ", "-"), marks=[pytest.mark.slow] if damage.slow else [])
        for damage in DAMAGES
    ],
)
def test_damaged_files(damage: Damage, trained: Path, refusal: Refusal) -> None:
    put_run(trained)
    damage.do()
    line = refusal(run_train, "pets", *QUICK, "--name", "r")
    assert damage.message in line
    assert len(line) < 1000
    assert not Path(OWNED).exists()


# ------------------------------------------------------------------ faults in training


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_faults_save_the_run(fault: Fault, capfd: pytest.CaptureFixture[str]) -> None:
    """One line, exit code 3, and the run can be resumed once the cause is gone."""
    arguments = (*fault.arguments, *QUICK, "--trainer.n-total-env-steps", 45, "--name", "r")
    with fault.cause(), pytest.raises(SystemExit) as stop:
        run_train(*arguments)
    error = capfd.readouterr().err
    assert stop.value.code == 3
    assert error.count("\n") == 1
    assert error.startswith("error: ")
    for part in fault.messages:
        assert part in error
    n = read_state(Path("runs/r"))["n_total_env_steps"]
    assert n in (30, 31)
    assert f"the same command goes on at {n} of 45 environment steps" in error
    run_train(*arguments)
    assert f"runs/r goes on at {n} of 45" in capfd.readouterr().out
    assert read_state(Path("runs/r"))["n_total_env_steps"] == 45


def test_an_environment_that_cannot_begin_leaves_no_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Broken(Drift):
        def reset(self, *, seed=None, options=None):
            raise ZeroDivisionError("a fault of the environment's own")

    gym.register("Broken-v0", Broken, max_episode_steps=5)
    with pytest.raises(SystemExit) as stop:
        run_train("random", *QUICK, "--env", "Broken-v0")
    assert stop.value.code == 3
    line = capfd.readouterr().err
    assert line.startswith("error: environment 0")
    assert "a fault of the environment's own" in line
    assert line.count("\n") == 1
    assert all_files(tmp_path) == {}


# ------------------------------------------------------------------ the table


_INTRODUCTION = """# Bad inputs and their error messages

`python -m tests.experiments.test_bad_input > experiments/results/bad_inputs.md` writes this table. Each message is one
line, the whole output on stderr. The exit code is 2, and nothing on the disk has changed. For faults during training it
is 3, and the run is saved. Checksums are left out.

"""


def _line(*arguments: object) -> str:
    """Return the message of a command line that fails."""
    output, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(error), contextlib.suppress(SystemExit):
        run_train(*arguments)
    return error.getvalue() or "(nothing)"


def _table() -> str:
    """Return all bad inputs and the messages about them, as markdown."""
    rows = []
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.redirect_stdout(io.StringIO()):
            run_train("pets", *QUICK, "--name", "trained")
        for arguments, _ in SETTINGS:
            rows.append((f"`{' '.join(arguments)}`", _line(*_with_preset(arguments))))
        for damage in DAMAGES:
            put_run(Path("runs/trained"))
            damage.do()
            rows.append((damage.name, _line("pets", *QUICK, "--name", "r")))
            shutil.rmtree("runs/r")
        for fault in FAULTS:
            with fault.cause():
                rows.append(
                    (fault.name, _line(*fault.arguments, *QUICK, "--trainer.n-total-env-steps", 100, "--name", "r"))
                )
            shutil.rmtree("runs/r")
        assert not Path(OWNED).exists()
    lines = ["| input | message |", "|---|---|"]
    for name, message in rows:
        text = re.sub(r"[0-9a-f]{64}", "…", re.sub(r"-[0-9a-f]{16}\.pt", "-….pt", message.strip()))
        lines.append(_row(name, text.replace("](", "]\\(")))  # gymnasium's "[namespace/](env-name)" is no link
    return "\n".join(lines)


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    print(_INTRODUCTION + _table())
