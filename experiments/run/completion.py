"""Completion of the command `layeredrl` by the shell: subcommands, agents and options, as tyro writes it."""

import contextlib
import functools
import io
import operator
import re
from collections.abc import Mapping
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
from experiments.run.config import AGENTS, RunConfig, agent_class, first_line, preset_names
from experiments.sweep.__main__ import SweepConfig


@dataclass(frozen=True)
class NewConfig:
    """Copy agents, environments and experiments into a folder of your own."""

    folder: tyro.conf.Positional[Path]
    """New or empty folder."""


COMMANDS = {
    "evaluate": EvaluateConfig,
    "diagnose": DiagnoseConfig,
    "report": ReportConfig,
    "compare": CompareConfig,
    "sweep": SweepConfig,
    "plot-plan": PlotPlanConfig,
    "plot-skills": PlotSkillsConfig,
    "list": ListConfig,
    "new": NewConfig,
}
"""Options of the commands except train by name of the command."""
SHELLS = ("bash", "zsh", "fish")


def completion(shell: str) -> str:
    """Return the script that teaches a shell the completion of `layeredrl`.

    Raises:
        ValueError: tyro knows no completion for the shell.
    """
    if shell not in SHELLS:
        raise ValueError(f"shell is {shell!r}, expected one of {', '.join(SHELLS)}")
    agents = {name: (_with_presets(agent_class(name)), first_line(agent_class(name))) for name in AGENTS}
    choice: list[Any] = [("run", Annotated[_choice(agents), tyro.conf.arg(name="")])]
    train = make_dataclass("Train", choice)
    train.__doc__ = "Train an agent in an environment."
    classes = {"train": train, **COMMANDS}
    script = io.StringIO()
    with contextlib.redirect_stdout(script), contextlib.suppress(SystemExit):
        commands = _choice({name: (cls, first_line(cls)) for name, cls in classes.items()})
        tyro.cli(commands, args=["--tyro-print-completion", shell], prog="layeredrl")
    # Texts of options are Python literals there, and the shell would take the rest after a line break for words.
    spec = re.compile(r"^COMPLETION_SPEC = .*$", re.MULTILINE)
    return spec.sub(lambda found: found[0].replace(r"\n", " "), script.getvalue())


def _with_presets(agent: type[Any]) -> type[Any]:
    """Settings of a run of an agent, where the names of its presets are choices."""
    run_config: Any = RunConfig
    fields: list[Any] = [
        ("preset", Literal[tuple(preset_names(agent))], preset_names(agent)[0]),
        ("settings", Annotated[agent, tyro.conf.arg(name="")]),
    ]
    return make_dataclass("Run", fields, bases=(run_config[agent],), frozen=True, kw_only=True)


def _choice(classes: Mapping[str, tuple[Any, str]]) -> Any:
    """Type of a choice between subcommands, with their descriptions."""
    choices = [Annotated[cls, tyro.conf.subcommand(name, description=text)] for name, (cls, text) in classes.items()]
    return functools.reduce(operator.or_, choices)
