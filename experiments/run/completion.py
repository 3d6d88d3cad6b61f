"""Completion of the command `layeredrl` by the shell: the script of tyro, with more names and with files."""

import contextlib
import functools
import io
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from experiments.compare import CompareConfig
from experiments.diagnose import DiagnoseConfig
from experiments.evaluate import EvaluateConfig
from experiments.list import ListConfig
from experiments.plot_plan import PlotPlanConfig
from experiments.plot_skills import PlotSkillsConfig
from experiments.report.__main__ import ReportConfig
from experiments.report.metrics import SCORES
from experiments.run.config import AGENTS, RunConfig, agent_class, first_line, preset_names
from experiments.sweep.__main__ import SweepConfig


@dataclass(frozen=True)
class NewConfig:
    """Copy agents, environments and experiments into a folder of your own."""

    folder: tyro.conf.Positional[Path]
    """New or empty folder."""


def _with_names(cls: type[Any], **names: Sequence[str]) -> type[Any]:
    """Return a dataclass in which some fields are choices: the shell offers their names, the first is the default."""
    fields: list[Any] = [(field, Literal[tuple(known)], known[0]) for field, known in names.items()]
    return make_dataclass(cls.__name__, fields, bases=(cls,), namespace={"__doc__": cls.__doc__}, frozen=True)


COMMANDS = {
    "evaluate": EvaluateConfig,
    "diagnose": DiagnoseConfig,
    "report": _with_names(ReportConfig, metric=SCORES),
    "compare": _with_names(CompareConfig, metric=SCORES),
    "sweep": SweepConfig,
    "plot-plan": PlotPlanConfig,
    "plot-skills": PlotSkillsConfig,
    "list": ListConfig,
    "new": NewConfig,
}
"""Options of the commands except train by name of the command."""
SHELLS = ("bash", "zsh", "fish")
CALL = "get_completions(words, current_index, COMPLETION_SPEC)"
"""Call in the completion script of tyro; the script prints its results, one per line."""
OFFERED = (
    f"[x for x in {CALL} if not x.startswith('-') or words[1:2] == ['train'] "
    "or ''.join(words[current_index:]).startswith('-')] or ['__TYRO_COMPLETE_FILES__']"
)
"""In its place: options after a dash only, because all commands but `train` take files; files if nothing else fits."""
BASH_FILES = 'COMPREPLY=($(compgen -f -- "$cur"))'
OWN_BASH_FILES = """\
local IFS=$'\\n'
    compopt -o filenames 2> /dev/null
    COMPREPLY=($(compgen -f -- "${COMP_WORDS[COMP_CWORD]}"))"""
"""In its place: $cur has the words before in front, unless one of them is an option; a slash follows a folder."""
ZSH_END = """\
if [[ ${zsh_eval_context[-1]} == loadautofunc ]]; then
  _tyro_layeredrl "$@"
else
  compdef _tyro_layeredrl layeredrl
fi
"""
"""The script is either a file of the completion system, or sourced."""


def completion(shell: str) -> str:
    """Return the script that teaches a shell the completion of `layeredrl`.

    Raises:
        ValueError: tyro knows no completion for the shell.
    """
    if shell not in SHELLS:
        raise ValueError(f"shell is {shell!r}, expected one of {', '.join(SHELLS)}")
    agents = {name: agent_class(name) for name in AGENTS}
    runs = _choice({name: _with_presets(agent) for name, agent in agents.items()})
    train = make_dataclass("Train", [("run", Annotated[runs, tyro.conf.arg(name="")])])
    train.__doc__ = "Train an agent in an environment."
    commands = {"train": train, **COMMANDS}
    script = io.StringIO()
    with contextlib.redirect_stdout(script), contextlib.suppress(SystemExit):
        tyro.cli(_choice(commands), args=["--tyro-print-completion", shell], prog="layeredrl")
    texts = {name: first_line(cls) for name, cls in {**agents, **commands}.items()}
    spec = re.compile(r"^COMPLETION_SPEC = .*$", re.MULTILINE)
    text = spec.sub(lambda found: _with_texts(found[0], texts), script.getvalue())
    if shell == "zsh":
        text = text.replace('_tyro_layeredrl "$@"\n', ZSH_END)
    return text.replace(CALL, OFFERED).replace(BASH_FILES, OWN_BASH_FILES)


def _with_presets(agent: type[Any]) -> type[Any]:
    """Settings of a run of an agent, where the names of its presets are choices."""
    run_config: Any = RunConfig
    fields: list[Any] = [
        ("preset", Literal[tuple(preset_names(agent))], preset_names(agent)[0]),
        ("settings", Annotated[agent, tyro.conf.arg(name="")]),
    ]
    return make_dataclass("Run", fields, bases=(run_config[agent],), frozen=True, kw_only=True)


def _choice(classes: Mapping[str, Any]) -> Any:
    """Type of a choice between subcommands."""
    choices = [Annotated[cls, tyro.conf.subcommand(name)] for name, cls in classes.items()]
    return functools.reduce(operator.or_, choices)


def _with_texts(spec: str, texts: Mapping[str, str]) -> str:
    """Describe the subcommands in the script's list of them, where tyro repeats their names.

    The list is a Python literal; the shell would take the rest of a text after a line break for words.
    """
    subcommand = re.compile(r"'([\w-]+)': \{'description': '\1'")
    spec = re.sub(r"\\+n", " ", spec)
    return subcommand.sub(
        lambda found: found[0][:-1].removesuffix(found[1]) + texts[found[1]].replace("'", "’") + "'", spec
    )
