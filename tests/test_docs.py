import re
from importlib.util import find_spec
from pathlib import Path

import gymnasium as gym
import pytest

import envs  # noqa: F401  pages register the tasks only when they are the first to import this
from tests.experiments.commands import QUICK, run_train

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
LINKED = [*PAGES, ROOT / "CHANGELOG.md", ROOT / "SECURITY.md", *sorted((ROOT / "experiments/results").glob("**/*.md"))]
FOLDERS = ("layeredrl", "agents", "envs", "experiments", "examples", "tests", "docs")


@pytest.fixture(autouse=True)
def registry():
    """Environments that a page registers are gone after it."""
    before = dict(gym.registry)
    yield
    gym.registry.clear()
    gym.registry.update(before)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_blocks_run_one_after_the_other(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = page.read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert page.name != "README.md" or len(blocks) == 2
    if any("layeredrl.load(" in block for block in blocks):  # the run that the page's command trains
        (command,) = re.findall(r"^    python -m experiments\.train (.*)$", text, re.MULTILINE)
        run_train(*command.split(), *QUICK)
    namespace = {"__name__": page.stem}
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
