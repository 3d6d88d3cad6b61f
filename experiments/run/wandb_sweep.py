"""Runs that the agent of a W&B sweep starts: its words on the command line, and its environment variables."""

import ast
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class SweepTrial:
    """Settings that the agent of a W&B sweep has given to a run."""

    run_id: str
    """Id of the W&B run."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Settings chosen by the sweep, by name."""

    @classmethod
    def from_environment(cls) -> "SweepTrial | None":
        """Return the trial of this process; None if no sweep's agent has started it."""
        run_id = os.environ.get("WANDB_RUN_ID")
        if not run_id or not os.environ.get("WANDB_SWEEP_ID"):
            return None
        path = Path(os.environ.get("WANDB_SWEEP_PARAM_PATH", ""))
        if not path.is_file():
            return cls(run_id)
        import yaml

        content = yaml.safe_load(path.read_text()) or {}
        return cls(run_id, {key: entry["value"] for key, entry in content.items() if isinstance(entry, Mapping)})

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raise unless the run logs to W&B with the settings that the sweep has chosen.

        Args:
            settings: Settings of the run, nested.

        Raises:
            ValueError: The run does not log to W&B, or has other settings.
        """
        if settings["wandb"] == "off":
            raise ValueError("a W&B sweep has started this run, but wandb is off; add --wandb online to its command")
        for name, value in self.parameters.items():
            own = find_setting(settings, name)
            if own is not UNKNOWN and own != value and str(own) != str(value):
                raise ValueError(
                    f"the W&B sweep sets {name} to {value!r}, but this run has {own!r}: its command should end in "
                    "${args}, which holds all parameters"
                )


def words_of_sweep(args: Sequence[str], default: Any) -> list[str]:
    """Translate a sweep agent's --a.b=True, --a.b=False, --a.b=[1, 2] to tyro's --a.b, --a.no-b, --a.b 1 2.

    Args:
        args: Words of a command line.
        default: Settings whose types show which options are switches and which are lists.
    """
    words: list[str] = []
    for arg in args:
        name, given, value = arg.partition("=")
        known = find_setting(default, name.removeprefix("--")) if given and name.startswith("--") else UNKNOWN
        if isinstance(known, bool) and value.lower() in ("true", "false"):
            head, dot, last = name.removeprefix("--").rpartition(".")
            words.append(f"--{head}{dot}{'' if value.lower() == 'true' else 'no-'}{last}")
        elif isinstance(known, tuple) and re.fullmatch(r"[\[(].*[\])]", value):
            words += [name, *_items(value)]
        else:
            words.append(arg)
    return words


def _items(text: str) -> list[str]:
    """Return the items of a Python list; the text itself if it is no list, which the command line then refuses."""
    try:
        return [str(item) for item in ast.literal_eval(text)]
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return [text]


UNKNOWN = object()


def find_setting(settings: Any, name: str) -> Any:
    """Return a setting by its name on the command line, where settings of the agent have no prefix."""
    for prefix in ("", "settings."):
        found = settings
        for part in f"{prefix}{name}".replace("-", "_").split("."):
            found = found.get(part, UNKNOWN) if isinstance(found, Mapping) else getattr(found, part, UNKNOWN)
        if found is not UNKNOWN:
            return found
    return UNKNOWN
