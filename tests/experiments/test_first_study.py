"""The commands of docs/first_study.md, in an empty folder."""

import importlib
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from layeredrl.command import COMMANDS
from tests.experiments.commands import call

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "first_study.md").read_text()
SHORT = {"for seed in 0 1 2;": "for seed in 0;", "steps 300": "steps 60", "--steps 200": "--steps 30"}
"""Replacements that make the commands quick."""


def shell_lines() -> list[str]:
    """The shell lines of each section: set-up, training, results, use of an agent, study."""
    page = re.sub(r"^```python\n.*?^```", "", PAGE, flags=re.DOTALL | re.MULTILINE)
    sections = re.split(r"^## ", page, flags=re.MULTILINE)
    blocks = ["\n".join(line[4:] for line in text.splitlines() if line.startswith("    ")) for text in sections]
    return [block for block in blocks if block]


def write_files(folder: Path) -> None:
    """Save the Python blocks of the page as it says."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    for name, block in zip(re.findall(r"Save this as `(\w+\.py)`", PAGE), blocks, strict=True):
        (folder / name).write_text(block)


def _commands(lines: str) -> list[list[str]]:
    """Name and words of each command, with the only seed of a loop."""
    for old, new in SHORT.items():
        lines = lines.replace(old, new)
    seeds = re.findall(r"for seed in (\d+);", lines) or [""]
    calls = re.findall(r"^ *layeredrl (.*)", lines.replace("\\\n", " ").replace("$seed", seeds[0]), re.MULTILINE)
    return [shlex.split(words) for words in calls]


def test_the_page_has_all_commands() -> None:
    set_up, train, results, use, sweep = shell_lines()
    assert _commands(set_up) == [["new", "../cart"]]
    assert all(old in train + results for old in SHORT)
    assert [words[:2] for words in _commands(train)] == [["train", "pets"], ["train", "sac"]]
    assert [words[0] for words in _commands(results)] == ["diagnose", "report", "compare"]
    assert use == "python use.py"
    assert [words[0] for words in _commands(sweep)] == ["sweep", "report"]


@pytest.mark.usefixtures("blank_figures")
def test_from_an_environment_to_a_comparison(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    pytest.importorskip("rliable")
    write_files(Path())
    monkeypatch.syspath_prepend(tmp_path)  # where the command finds the environment
    _, train, results, *_ = shell_lines()
    for name, *words in [*_commands(train), *_commands(results)]:
        call(importlib.import_module(COMMANDS[name][0]).main, *words)
    runpy.run_path("use.py")
    sys.modules.pop("cart")
    printed = capsys.readouterr().out
    page = Path("report.html").read_text()
    assert "The model on held-out data, by policy" in page  # diagnosis.json
    assert "model/r2" in page
    assert "uncommitted changes" in page or not (ROOT / ".git").exists()  # code.json
    for text in ("Settings that differ", "Code: the same", "Results", "env/episode_return, best", "return -"):
        assert text in printed


@pytest.mark.slow
def test_the_whole_page_in_a_shell() -> None:
    pytest.importorskip("ray")  # the page runs a study
    write_files(Path())
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHON": sys.executable, "COLUMNS": "200"}
    for lines in shell_lines()[1:]:
        commands = 'python() { "$PYTHON" "$@"; }; layeredrl() { python -m layeredrl "$@"; }'
        script = f"set -e\n{commands}\n{lines}\n"
        done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    for table in ("report.md", "study.md"):
        rows = [
            line.split("|") for line in Path(table).read_text().splitlines() if line.startswith(("| pets ", "| sac "))
        ]
        assert len(rows) >= 2
    assert len(list(Path("runs").glob("*-cart-Cart-v0-[012]"))) == 6
    assert len(list(Path("runs/cart").glob("*/summary.json"))) == 6
