"""The command `layeredrl`: runs the commands of the lab, such as `layeredrl train pets --env Pendulum-v1`.

The lab of the current folder comes first, if there is one; else the copy in the package, or the checkout, is used.
Imports nothing heavy.
"""

import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from layeredrl import __version__
from layeredrl.lab import PACKAGE, find_lab, holds_lab
from layeredrl.new_lab import write_lab

COMMANDS = {
    "train": ("experiments.train", "train an agent, or resume its run"),
    "evaluate": ("experiments.evaluate", "play episodes with a trained agent"),
    "diagnose": ("experiments.diagnose", "measure errors and calibration of a run's world model"),
    "report": ("experiments.report.__main__", "compare runs on one HTML page"),
    "compare": ("experiments.compare", "differences between two runs"),
    "sweep": ("experiments.sweep.__main__", "run a study of many runs"),
    "plot-plan": ("experiments.plot_plan", "draw a plan and what then happened"),
    "plot-skills": ("experiments.plot_skills", "draw what the skills of a run do"),
    "list": ("experiments.list", "agents, presets and environments"),
}
"""Module and description of the lab's commands by name."""
NEW = "new"
COMPLETION = "--tyro-print-completion"


def main() -> None:
    """Run a command of the lab, write a new lab, or print help."""
    name, *words = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help", "help"):
        print(usage())
    elif name == "--version":
        print(f"layeredrl {__version__}")
    elif name == NEW:
        _new(words)
    elif name in COMMANDS:
        enter_lab()
        sys.argv = [f"layeredrl {name}", *words]
        importlib.import_module(COMMANDS[name][0]).main()
    elif name == COMPLETION:
        enter_lab()
        try:
            print(importlib.import_module("experiments.run.completion").completion(" ".join(words)))
        except ValueError as error:
            _fail(str(error))
    else:
        near = difflib.get_close_matches(name, [*COMMANDS, NEW, COMPLETION], n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        _fail(f"unknown command {name!r}{hint} (known: {', '.join([*COMMANDS, NEW])})")


def usage() -> str:
    """Return the help of the command."""
    lines = [f"  {name:<12} {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: layeredrl COMMAND ...",
            "",
            "Online model-based reinforcement learning.",
            "",
            *lines,
            f"  {NEW:<12} copy agents, environments and commands into a folder of your own",
            "",
            "layeredrl COMMAND --help shows the options of a command. First steps:",
            "",
            "  layeredrl train pets --env Pendulum-v1",
            "  layeredrl evaluate runs/pets-Pendulum-v1-0 --episodes 5",
            "",
            "Completion of commands, agents, presets, metrics and options: write a script,",
            "and source it in ~/.bashrc, or in ~/.zshrc after compinit. fish has one, too.",
            "",
            "  layeredrl --tyro-print-completion bash > ~/.layeredrl-completion",
            "  echo source ~/.layeredrl-completion >> ~/.bashrc",
        ]
    )


def enter_lab() -> None:
    """Put the lab and the current folder first on the path of this process and of those that it starts.

    In a checkout that is not the installed one, the checkout's own library replaces this one.
    """
    here = Path.cwd()
    own = here / "layeredrl"
    if holds_lab(here) and (own / "__main__.py").is_file() and own.resolve() != PACKAGE and not sys.flags.safe_path:
        os.execv(sys.executable, [sys.executable, "-m", "layeredrl", *sys.argv[1:]])
    # A folder without the lab may have folders called agents or envs.
    places = [str(here)] if holds_lab(here) else [str(find_lab()), str(here)]
    sys.path[:] = [*places, *(place for place in sys.path if place not in places)]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (*places, os.environ.get("PYTHONPATH"))))


def _new(words: Sequence[str]) -> None:
    """Write a lab into the folder that the words name."""
    if words[:1] in (["-h"], ["--help"]):
        print("usage: layeredrl new FOLDER\n\nCopy agents, environments and experiments into a folder of your own.")
        return
    if len(words) != 1 or words[0].startswith("-"):
        _fail(f"layeredrl new is followed by {' '.join(words) or 'nothing'!r}, expected one folder, such as my-lab")
    try:
        n_files = write_lab(Path(words[0]))
    except (ValueError, OSError) as error:
        _fail(str(error))
    print(f"{words[0]}: {n_files} files. The commands use them when you are there:\n")
    print(f"  cd {words[0]}\n  layeredrl train pets --preset demo")


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)
