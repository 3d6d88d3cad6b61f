"""The examples, run as scripts but in this process, which shares their imports."""

import json
import re
import runpy
from pathlib import Path

import gymnasium as gym
import matplotlib.pyplot as plt
import pytest
import torch

import envs  # noqa: F401  registered before the fixture below takes its copy

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
NOTEBOOK = ROOT / "examples" / "own_environment.ipynb"


each_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)


@pytest.fixture(autouse=True)
def _fresh_registry():
    """Remove environments that an example registers."""
    before, n_threads = dict(gym.registry), torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(n_threads)
    gym.registry.clear()
    gym.registry.update(before)


def _n_lines(code: str) -> int:
    return sum(bool(line.strip()) for line in code.splitlines())


def _returns(output: str) -> list[float]:
    """Numbers that an example prints while it learns: those of its last list, or one of each line."""
    lists = re.findall(r"\[(.*)\]", output)
    numbers = lists[-1].split(",") if lists else re.findall(r"steps: (?:return )?(-?[\d.]+)", output)
    return [float(number) for number in numbers]


@each_script
def test_a_script_has_fewer_than_thirty_lines_and_runs(script, capsys):
    text = script.read_text()
    assert _n_lines(text) < 30
    assert f"python -m examples.{script.stem}." in text.splitlines()[0]
    total = re.compile(r"(?<=n_total_env_steps)( < |=)(\d+)")
    ((_, n_steps),) = total.findall(text)
    shorter = total.sub(rf"\g<1>{min(int(n_steps) // 2, 800)}", text)
    exec(compile(shorter, str(script), "exec"), {"__name__": "__main__"})
    assert len(_returns(capsys.readouterr().out)) >= 1


@pytest.mark.slow
@each_script
def test_a_script_learns(script, capsys):
    runpy.run_path(str(script), run_name="__main__")
    numbers = _returns(capsys.readouterr().out)
    assert len(numbers) >= 2
    assert numbers[-1] > numbers[0] + 0.1


@pytest.mark.slow
def test_the_notebook_learns_and_draws():
    plt.switch_backend("Agg")
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    sources = ["".join(cell["source"]) for cell in cells]
    assert _n_lines("\n".join(sources)) <= 32
    namespace = {"__name__": "__main__"}
    for i, source in enumerate(sources):
        exec(compile(source, f"{NOTEBOOK.name}, cell {i + 1}", "exec"), namespace)
    returns, plan = plt.gcf().axes
    (curve,) = returns.lines
    assert curve.get_ydata()[-1] > curve.get_ydata()[0]
    assert len(plan.lines) == 5  # one per network
    assert all(len(line.get_ydata()) == 13 for line in plan.lines)  # twelve steps after the start
    plt.close("all")
