"""Facts of the task for which settings are chosen: of the command line's environment, or kept in the run's folder."""

import contextlib
import dataclasses
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from experiments.run.env_kwargs import EnvKwargs
from layeredrl.environments import TaskFacts, make_facts

if TYPE_CHECKING:
    from experiments.run.config import RunConfig

FACTS = "facts.json"
"""File of a run that keeps the facts: a run that goes on has the same settings, whatever the environment shows now."""


@dataclass(frozen=True)
class _Where:
    """The settings of a run that decide about its environment and its folder."""

    env: str
    env_kwargs: EnvKwargs
    action_repeat: int
    wrappers: tuple[str, ...]
    seed: int
    name: str | None
    runs_dir: Path
    fresh: bool


def located(default: "RunConfig[Any]", words: Sequence[str]) -> "RunConfig[Any]":
    """Return the defaults with the environment and the folder of a command line; its other words do not matter yet."""
    names = [field.name for field in dataclasses.fields(_Where)]
    own = _Where(**{name: getattr(default, name) for name in names})
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            found, _ = tyro.cli(_Where, args=words, default=own, return_unknown_args=True)
    except SystemExit:  # the whole command line is read afterwards, and names the error
        return default
    return dataclasses.replace(default, **{name: getattr(found, name) for name in names})


def facts_of(config: "RunConfig[Any]") -> TaskFacts:
    """Return the facts that a run which goes on has kept, or those of its environment."""
    if not config.fresh:
        with contextlib.suppress(OSError, ValueError, TypeError):
            return TaskFacts(**json.loads((config.folder / FACTS).read_text()))
    return make_facts(config.environment)


def as_json(facts: TaskFacts) -> str:
    """Return the content of the file."""
    return json.dumps(dataclasses.asdict(facts), indent=2) + "\n"
