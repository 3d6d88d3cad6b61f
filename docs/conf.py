"""Configuration of the documentation site: `make docs`.

The source folder is the checkout's root, so that relative links from the pages in `docs` to results, examples and other
files lead to the same places as on a Git host.
"""

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # agents: not in an installed package

from layeredrl import __version__  # noqa: E402  after the path

project = "LayeredRL"
copyright = "LayeredRL contributors"
release = __version__
root_doc = "docs/index"
include_patterns = [
    "docs/**",
    "experiments/results/**.md",
    "experiments/references/README.md",
    "CHANGELOG.md",
    "SECURITY.md",
]
exclude_patterns = [".*", "agents", "build", "dist", "envs", "examples", "layeredrl", "runs", "tests", "wandb"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 4
highlight_language = "text"  # of indented blocks, which are commands and their output
default_role = "code"  # single backticks in docstrings

autoclass_content = "both"  # class and constructor
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_use_ivar = True  # else attributes with a docstring of their own appear twice
maximum_signature_line_length = 80
python_use_unqualified_type_names = True
add_module_names = False

html_theme = "furo"
html_title = f"LayeredRL {release}"
html_copy_source = False
html_show_search_summary = False  # would load pages, which a browser refuses from a disk


def name_links(app: Sphinx, name: str, source: list[str]) -> None:
    """Let links whose text is a file's name, as it is usual on a Git host, show the title of the page."""
    source[0] = re.sub(r"(?<!`)\[[\w/]+\.md\](?=\([^)]+\.md[)#])", "[]", source[0])


def add_contents(app: Sphinx, name: str, source: list[str]) -> None:
    """Give pages of links a table of contents: each section of the index, and all results, from the files there are."""
    if name == app.config.root_doc:
        for section in re.split(r"^## ", source[0], flags=re.MULTILINE)[1:]:
            caption, _, text = section.partition("\n")
            source[0] += _contents(re.findall(r"\]\((?!\w+:)([^)#]+)\.(?:md|rst)\)", text), f":caption: {caption}\n")
    if name == "experiments/results/README":
        source[0] += _contents(["*", "*/*"], ":glob:\n")


def _contents(pages: list[str], option: str) -> str:
    entries = "\n".join(dict.fromkeys(pages))
    return f"\n\n```{{toctree}}\n:hidden:\n{option}\n{entries}\n```\n"


def add_start(app: Sphinx, exception: Exception | None) -> None:
    """Write the site's first file, which leads to the index."""
    if exception is None and app.builder.format == "html":
        target = f"{app.config.root_doc}.html"
        text = f'<!DOCTYPE html><meta charset="utf-8"><title>{app.config.html_title}</title>'
        text += f'<meta http-equiv="refresh" content="0; url={target}"><a href="{target}">{app.config.html_title}</a>\n'
        (Path(app.outdir) / "index.html").write_text(text)


def setup(app: Sphinx) -> None:
    """Connect the functions above."""
    app.connect("source-read", name_links)
    app.connect("source-read", add_contents)
    app.connect("build-finished", add_start)
