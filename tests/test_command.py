"""The command `layeredrl`: which program it starts, with which lab, and the lab that it writes."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from experiments import list as list_command
from experiments.run.config import AGENTS, parse
from layeredrl import command
from layeredrl.new_lab import write_lab
from tests.experiments.commands import call

ROOT = Path(__file__).parents[1]
PRINTING = "import os, sys\n\ndef main():\n    print(__file__, sys.argv, os.environ['PYTHONPATH'], sep='\\n')\n"


def layeredrl(*words, cwd):
    """Output of `python -m layeredrl` with this checkout's library."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = [sys.executable, "-P", "-m", "layeredrl", *words]
    return subprocess.run(run, cwd=cwd, env=environment, check=True, capture_output=True, text=True).stdout.strip()


def test_the_lab_of_the_current_folder_comes_first(tmp_path):
    (tmp_path / "experiments" / "run").mkdir(parents=True)
    for name in ("experiments/__init__.py", "experiments/run/__init__.py"):
        (tmp_path / name).touch()
    (tmp_path / "experiments" / "plot_plan.py").write_text(PRINTING)
    file, argv, path = layeredrl("plot-plan", "runs/a", "--step", "3", cwd=tmp_path).splitlines()
    assert Path(file) == tmp_path / "experiments" / "plot_plan.py"
    assert argv == str(["layeredrl plot-plan", "runs/a", "--step", "3"])
    assert path.split(os.pathsep) == [str(tmp_path), str(ROOT)]  # for processes that the command starts


def test_folders_of_these_names_are_no_lab(tmp_path, monkeypatch):
    for name in ("agents", "envs", "experiments"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["elsewhere", str(ROOT)])
    monkeypatch.setenv("PYTHONPATH", "more")
    command.enter_lab()
    assert sys.path == [str(ROOT), str(tmp_path), "elsewhere"]
    assert os.environ["PYTHONPATH"].split(os.pathsep) == [str(ROOT), str(tmp_path), "more"]


def test_unknown_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["layeredrl", "evalute", "runs/a"])
    with pytest.raises(SystemExit, match="2"):
        command.main()
    assert "unknown command 'evalute'; did you mean evaluate?" in capsys.readouterr().err


def test_usage_names_all_commands(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["layeredrl"])
    command.main()
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in [*command.COMMANDS, "new"])


def test_a_new_lab_is_a_copy(tmp_path):
    folder = tmp_path / "My Lab"
    write_lab(folder)
    found = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    own = {Path(name) for name in ("pyproject.toml", "README.md", ".gitignore")}
    assert own < found
    assert {Path("agents/pets.py"), Path("envs/models/reacher.xml"), Path("experiments/report/__main__.py")} < found
    assert all((folder / path).read_bytes() == (ROOT / path).read_bytes() for path in found - own)
    assert not any("results" in path.parts or "__pycache__" in path.parts for path in found)
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["name"] == "my-lab"
    assert project["dependencies"] == [f"layeredrl=={command.__version__}"]
    with pytest.raises(ValueError, match="exists, expected a new or an empty folder"):
        write_lab(folder)


def test_list_shows_agents_presets_and_environments(capsys):
    call(list_command.main)
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line for line in lines if line}
    assert set(AGENTS) < set(rows)
    assert "Model-predictive control" in rows["pets"]
    assert "cartpole-fast" in rows["pets"]
    assert rows["PETSPusher-v0"].split()[-1] == "mujoco"
    assert rows["AntMaze-UMaze-v0"].split()[-1] == "robotics"
    assert "Balance a pole" in rows["ContinuousCartPole-v0"]


def test_short_help_fits_a_screen(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["layeredrl train"])
    for agent, columns in (("pets", "80"), ("sac", "140"), ("pets", "200")):
        monkeypatch.setenv("COLUMNS", columns)
        with pytest.raises(SystemExit, match="0"):
            parse([agent, "--help"])
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) <= 40
        assert max(map(len, lines)) <= 80
        assert lines[-1].endswith(f"layeredrl train {agent} --help-all")
        shown = {line.split()[0] for line in lines if line.startswith("  --")}
        looked_for = "env preset seed trainer.n-total-env-steps n-envs device name fresh wandb"
        assert {f"--{name}" for name in looked_for.split()} <= shown
        if agent == "pets":
            assert {"--model.learning-rate", "--planner.icem.horizon"} <= shown
            assert "--planner.cem.horizon" not in shown
    with pytest.raises(SystemExit, match="0"):
        parse(["pets", "--help-all"])
    assert "--planner.cem.horizon" in capsys.readouterr().out


def test_a_near_preset_is_offered():
    with pytest.raises(ValueError, match=r"did you mean cartpole-fast\?"):
        parse(["pets", "--preset", "cartpole-fats"])
