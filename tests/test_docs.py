import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import gymnasium as gym
import pytest

import envs  # noqa: F401  pages register the tasks only when they are the first to import this
from layeredrl.command import COMMANDS, NEW
from tests.experiments.commands import QUICK, run_train

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
FIRST_STUDY = ROOT / "docs/first_study.md"  # experiments/test_first_study.py runs it
PAGES = [README, *sorted((ROOT / "docs").glob("**/*.md"))]
LINKED = [*PAGES, ROOT / "CHANGELOG.md", ROOT / "SECURITY.md", *sorted((ROOT / "experiments/results").glob("**/*.md"))]
SHORTER = {"own_loop.md": {"range(250)": "range(40)"}, "getting_started.md": {"range(200)": "range(20)"}}
"""Numbers of steps by page that a test of it replaces."""
FOLDERS = ("layeredrl", "agents", "envs", "experiments", "examples", "tests", "docs")


@pytest.fixture(autouse=True)
def registry():
    """Environments that a page registers are gone after it."""
    before = dict(gym.registry)
    yield
    gym.registry.clear()
    gym.registry.update(before)


def python_blocks(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def run_alone(block, folder):
    """Run a block as somebody who copies it: in a process of its own, where nothing but the package is importable."""
    (folder / "layeredrl").symlink_to(ROOT / "layeredrl")
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, "-c", block], cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_readme_imports_nothing_that_an_installation_lacks():
    imports = re.findall(r"^\s*(?:import|from) (\w+)", "\n".join(python_blocks(README)), re.MULTILINE)
    assert "layeredrl" in imports
    assert (set(imports) - {"layeredrl"}).isdisjoint(FOLDERS)


@pytest.mark.slow
def test_the_last_block_of_the_readme_runs_when_copied_and_learns(tmp_path):
    printed = run_alone(python_blocks(README)[-1], tmp_path)
    returns = [float(value) for value in re.findall(r"return (-?\d+)", printed)]
    assert len(returns) == 4
    assert returns[-1] > returns[0] / 5


@pytest.mark.parametrize("page", [page for page in PAGES if page != FIRST_STUDY], ids=lambda page: page.name)
def test_code_blocks_run_one_after_the_other(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gym.spec("Pendulum-v1"), "max_episode_steps", 30)
    text = page.read_text()
    blocks = python_blocks(page)[: -1 if page == README else None]  # its last block takes long: see above
    if any("layeredrl.load(" in block for block in blocks):  # the run that the page's command trains
        command, *_ = re.findall(r"^    (?:python -m experiments\.train|layeredrl train) (.*)$", text, re.MULTILINE)
        run_train(*command.split(), *QUICK)
    namespace = {"__name__": page.stem}
    for old, new in SHORTER.get(page.name, {}).items():
        assert any(old in block for block in blocks)
        blocks = [block.replace(old, new) for block in blocks]
    for i, block in enumerate(blocks):
        exec(compile(block, f"{page.name}, block {i + 1}", "exec"), namespace)


def prose(page):
    """Text of a page without its code blocks and inline code."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"(?<=\n\n)(?: {4}.*\n)+", "", text)
    return re.sub(r"`[^`\n]*`", "code", text)


def anchors(page):
    """Anchors of a page's headings as GitHub makes them; a repeated heading gets a number."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    slugs = []
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        visible = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", visible.strip().lower()).replace(" ", "-")
        n_before = sum(re.fullmatch(rf"{re.escape(slug)}(-\d+)?", x) is not None for x in slugs)
        slugs.append(f"{slug}-{n_before}" if n_before else slug)
    return set(slugs)


def broken_links(page):
    """Relative links and images of a page that lead to no file, or to no heading of a page."""
    text = prose(page)
    targets = re.findall(r"\]\(\s*([^)\s]+)[^)]*\)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    targets += re.findall(r"^\[[^]]+\]:\s*(\S+)", text, re.MULTILINE)
    broken = []
    for target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path)):
            broken.append(target)
    return broken


def test_links_and_images_lead_to_a_file_and_heading():
    broken = {str(page.relative_to(ROOT)): links for page in LINKED if (links := broken_links(page))}
    assert broken == {}


def test_broken_links_are_found(tmp_path):
    (tmp_path / "other.md").write_text("# A title, of `code` & more\n\n## Twice\n\n## Twice\n")
    page = tmp_path / "page.md"
    page.write_text(
        "# Here\n\n[a](other.md) [b](other.md#a-title-of-code--more) [c](other.md#twice-1) [d](#here) [e](http://x.y)\n"
        "[f](other.md#nowhere) ![g](missing.png) [h](#there) [i](none.md#twice) `[j](code.md)`\n\n    [k](code.md)\n"
    )
    assert broken_links(page) == ["other.md#nowhere", "missing.png", "#there", "none.md#twice"]


def test_files_named_in_the_text_exist():
    missing, n_in_architecture = [], 0
    for page in PAGES:
        names = [name for name in re.findall(r"`([\w./-]+)`", page.read_text()) if "/" in name]
        if page.name == "architecture.md":  # all paths there are paths of the repository
            paths = [name for name in names if re.search(r"(/|\.\w+)$", name)]
            n_in_architecture = len(paths)
        else:
            paths = [name for name in names if name.partition("/")[0] in FOLDERS]
        missing += [f"{page.name}: {path}" for path in paths if not (ROOT / path).exists()]
    assert missing == []
    assert n_in_architecture > 10


def test_commands_name_modules_that_exist():
    texts = [page.read_text() for page in LINKED]
    current = [text for text in texts if "ade with commit" not in text]  # results of a version whose commands they give
    modules = {name for text in current for name in re.findall(r"python -m (\w+(?:\.\w+)*)", text)}
    assert "experiments.train" in modules
    assert [name for name in sorted(modules) if find_spec(name) is None] == []
    commands = {name for text in texts for name in re.findall(r"^    layeredrl ([\w-]+)", text, re.MULTILINE)}
    assert "train" in commands
    assert commands <= {*COMMANDS, NEW}
