"""The shell lines of docs/first_study.md, as a person would call them, in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "first_study.md").read_text()
SHORT = {"for seed in 0 1 2;": "for seed in 0;", "steps 300": "steps 100"}
"""What is changed of the page where there is less time."""


def _shell(page: str) -> list[str]:
    """The shell lines of each section after the set-up."""
    page = re.sub(r"^```python\n.*?^```", "", page, flags=re.DOTALL | re.MULTILINE)
    sections = re.split(r"^## ", page, flags=re.MULTILINE)
    assert sections[1].startswith("Set up\n")
    blocks = ["\n".join(line[4:] for line in text.splitlines() if line.startswith("    ")) for text in sections[2:]]
    return [block for block in blocks if block]


def _call(lines: str) -> str:
    """What the lines print; each has to succeed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHON": sys.executable, "COLUMNS": "200"}
    script = f'set -e\npython() {{ "$PYTHON" "$@"; }}\n{lines}\n'
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _write_files() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    for name, block in zip(re.findall(r"Save this as `(\w+\.py)`", PAGE), blocks, strict=True):
        Path(name).write_text(block)


def test_the_page_says_all_there_is_to_do() -> None:
    train, look, sweep = _shell(PAGE)
    assert all(old in train for old in SHORT)
    for command, block in (("train", train), ("diagnose", look), ("report", look), ("compare", look), ("sweep", sweep)):
        assert f"python -m experiments.{command} " in block


def test_from_an_environment_to_a_comparison() -> None:
    _write_files()
    train, look, _ = _shell(PAGE)
    for old, new in SHORT.items():
        train = train.replace(old, new)
    _call(train)
    said = _call(look)
    page = Path("report.html").read_text()
    assert "The model on held-out data, by policy" in page  # diagnosis.json
    assert "model/r2" in page
    assert "uncommitted changes" in page or not (ROOT / ".git").exists()  # code.json
    for told in ("Settings that differ", "Code: the same", "Results", "env/episode_return, best"):
        assert told in said


@pytest.mark.slow
def test_the_whole_page_and_pets_is_better() -> None:
    _write_files()
    for block in _shell(PAGE):
        _call(block)
    for table in ("report.md", "study.md"):
        rows = [
            line.split("|") for line in Path(table).read_text().splitlines() if line.startswith(("| pets ", "| sac "))
        ]
        assert len(rows) >= 2
    assert len(list(Path("runs").glob("*-cart-Cart-v0-[012]"))) == 6
    assert len(list(Path("runs/cart").glob("*/summary.json"))) == 6
