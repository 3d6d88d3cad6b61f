"""Runs that the agent of a W&B sweep starts: its words on the command line, and what it says in the environment."""

import ast
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class SweepTrial:
    """What the agent of a W&B sweep has told a run that it starts."""

    run_id: str
    """Of the W&B run."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """That the sweep has chosen, by name."""

    @classmethod
    def from_environment(cls) -> "SweepTrial | None":
        """The trial that this process is; None if no agent has started it."""
        run_id = os.environ.get("WANDB_RUN_ID")
        if not run_id or not os.environ.get("WANDB_SWEEP_ID"):
            return None
        path = Path(os.environ.get("WANDB_SWEEP_PARAM_PATH", ""))
        if not path.is_file():
            return cls(run_id)
        import yaml

        content = yaml.safe_load(path.read_text()) or {}
        return cls(run_id, {key: told["value"] for key, told in content.items() if isinstance(told, Mapping)})

    def check(self, settings: Mapping[str, Any]) -> None:
        """See to it that the run is what W&B takes it for.

        Args:
            settings: Of the run, nested.

        Raises:
            ValueError: It does not log to W&B, or has other settings than the sweep has chosen.
        """
        if settings["wandb"] == "off":
            raise ValueError(
                "a W&B sweep has started this run, but wandb is off: its command should say --wandb online"
            )
        for name, value in self.parameters.items():
            own = _look_up(settings, name)
            if own is not _UNKNOWN and own != value and str(own) != str(value):
                raise ValueError(
                    f"the W&B sweep sets {name} to {value!r}, but this run has {own!r}: its command should end in "
                    "${args}, which tells all parameters"
                )


def words_of_sweep(args: Sequence[str], default: Any) -> list[str]:
    """A command line as tyro understands it: --a.b, --a.no-b, --a.b 1 2 for an agent's --a.b=True, =False, =[1, 2].

    Args:
        args: Words of a command line.
        default: Settings that tell which are switches and which are lists.
    """
    words: list[str] = []
    for arg in args:
        name, given, value = arg.partition("=")
        known = _look_up(default, name.removeprefix("--")) if given and name.startswith("--") else _UNKNOWN
        if isinstance(known, bool) and value.lower() in ("true", "false"):
            head, dot, last = name.removeprefix("--").rpartition(".")
            words.append(f"--{head}{dot}{'' if value.lower() == 'true' else 'no-'}{last}")
        elif isinstance(known, tuple) and re.fullmatch(r"[\[(].*[\])]", value):
            words += [name, *_items(value)]
        else:
            words.append(arg)
    return words


def _items(text: str) -> list[str]:
    """The items of a list as Python writes it; the text itself if it is none, which the command line then refuses."""
    try:
        return [str(item) for item in ast.literal_eval(text)]
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return [text]


_UNKNOWN = object()


def _look_up(settings: Any, name: str) -> Any:
    """A setting by its name on the command line, where those of the agent have no prefix."""
    for prefix in ("", "settings."):
        found = settings
        for part in f"{prefix}{name}".replace("-", "_").split("."):
            found = found.get(part, _UNKNOWN) if isinstance(found, Mapping) else getattr(found, part, _UNKNOWN)
        if found is not _UNKNOWN:
            return found
    return _UNKNOWN
