"""The wheel, installed beside nothing of the checkout: what a person does after `pip install layeredrl`."""

import csv
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.experiments.test_first_study import shell_lines, write_files
from tests.test_packaging import build_wheel

pytestmark = pytest.mark.slow

QUICK = ("--preset", "debug", "--no-tensorboard")


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Interpreter of an environment with the wheel, and the dependencies of this one, but not its checkout."""
    root = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root / "v"], check=True)
    pip = [sys.executable, "-m", "pip", "--python", root / "v/bin/python", "install", "--no-deps", "--no-index", "-q"]
    subprocess.run([*pip, build_wheel("standard", root)], check=True)
    (site,) = (root / "v/lib").glob("python*/site-packages")
    # .pth files there, such as that of an editable install, are not read.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return root / "v/bin/python"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Working directory, with no lab in it."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture
def run(python):
    """Run a program of the environment in a folder, and return its output."""

    def run(cwd, *words, program="layeredrl"):
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        environment |= {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1"}
        words = [python.with_name(program), *map(str, words)]
        done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_the_package_comes_from_the_wheel(run, folder, python):
    site = python.parent.parent / "lib"
    found = run(folder, "-c", "import layeredrl; print(layeredrl.__file__)", program="python")
    assert Path(found.strip()).is_relative_to(site)
    code = "from importlib.util import find_spec; print(find_spec('agents'), find_spec('experiments'))"
    assert run(folder, "-c", code, program="python").split() == ["None", "None"]


def test_a_checkout_has_its_own_library(run, tmp_path):
    for name in ("experiments/run/__init__.py", "layeredrl/__init__.py", "layeredrl/__main__.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "layeredrl/__main__.py").write_text("import sys\nprint(__file__, *sys.argv[1:])\n")
    assert run(tmp_path, "train", "pets").split() == [str(tmp_path / "layeredrl/__main__.py"), "train", "pets"]


def test_train_evaluate_and_report(run, folder):
    # Environments in processes of their own find the lab, too.
    run(folder, "train", "pets", *QUICK, "--vectorization", "async", "--name", "async")
    run(folder, "train", "pets", *QUICK, "--name", "sync", "--seed", 1)
    for name in ("learning_curve.png", "model.png", "policy.gif"):
        assert (folder / "runs/async" / name).stat().st_size > 0
    assert "return" in run(folder, "evaluate", "runs/async", "--episodes", 2)
    code = "import layeredrl; print(layeredrl.load('runs/sync').predict([0.0, 0.0, 0.0, 0.0]))"
    assert "[" in run(folder, "-c", code, program="python")
    run(folder, "report", "runs")
    assert "layeredrl report runs" in (folder / "report.html").read_text()
    assert "seed" in run(folder, "compare", "runs/async", "runs/sync")


def test_list_help_and_completion(run, folder):
    assert "Balance a pole" in run(folder, "list")
    assert run(folder, "train", "sac", "--help").startswith("usage: layeredrl train sac [options]")
    (folder / "completion.bash").write_text(run(folder, "--tyro-print-completion", "bash"))
    script = """
source completion.bash
mkdir -p files/runs
cd files
for words in 'tr' 'train spl' 'train pets --preset cartpole-f' 'train pets --planner.icem.hor' 'plot-p' \\
    'report --metric ev' 'compare --metric env/e' 'report ru' 'report runs --met'; do
    COMP_WORDS=(layeredrl $words) COMP_CWORD=$(wc -w <<< $words) COMPREPLY=()
    _tyro_layeredrl
    echo "${COMPREPLY[@]}"
done
"""
    found = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True, check=True)
    expected = ["train", "splates splates-goals", "cartpole-fast", "--planner.icem.horizon", "plot-plan"]
    expected += ["eval/episode_return eval/success", "env/episode_return", "runs", "--metric"]
    assert found.stdout.splitlines() == expected


def test_a_lab_of_ones_own(run, folder):
    run(folder, "new", "my-lab")
    lab = folder / "my-lab"
    recipe = lab / "agents/random.py"
    recipe.write_text(recipe.read_text().replace('"""Uniformly random actions."""', '"""My own agent."""'))
    (lab / "envs/__init__.py").write_text(
        (lab / "envs/__init__.py").read_text()
        + '\ngym.register(id="Mine-v0", entry_point="envs.cartpole:ContinuousCartPole", max_episode_steps=7)\n'
    )
    assert "My own agent." in run(lab, "list")
    run(
        lab, "train", "random", *QUICK, "--env", "Mine-v0", "--vectorization", "async", "--no-pictures", "--name", "own"
    )
    assert len((lab / "runs/own/metrics.csv").read_text().splitlines()) > 60 // 7
    run(lab, "-m", "experiments.evaluate", "runs/own", "--episodes", 1, program="python")


def test_a_persons_path(python, tmp_path):
    # docs/first_study.md from its first to its last line, except for pip, whose place the fixture takes, and for Ray.
    work = tmp_path / "work"
    work.mkdir()
    set_up, *sections, _ = shell_lines()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}

    def shell(lines, cwd):
        words = ["bash", "-e", "-c", lines]
        done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    _, pip, after = set_up.partition("pip install -c constraints.txt .\n")
    assert pip
    shell(after, work)
    lab = tmp_path / "cart"
    write_files(lab)
    _, compared, used = (shell(lines, lab) for lines in sections)
    with (lab / "report-final-cart-Cart-v0.csv").open(newline="") as file:
        final = {row["setting"]: row for row in csv.DictReader(file)}
    assert final.keys() == {"pets", "sac"}
    assert all(row["runs"] == "3" and float(row["mean"]) < 0 for row in final.values())
    assert float(final["pets"]["median"]) > -200  # a random episode: about -1000
    page = (lab / "report.html").read_text()
    for text in ("Pets and sac on cart:Cart-v0", "pets, 3 seeds", "sac, 3 seeds", "settings.sac.tau"):
        assert text in page
    assert (lab / "report-figures/cart-Cart-v0-steps.png").stat().st_size > 0
    assert "settings.planner.icem.horizon" in (lab / "report-settings-own-pets.csv").read_text()
    assert "env/episode_return" in compared
    assert float(used.removeprefix("return ")) > -200
