"""Flags of the command line in messages: names of settings as they are typed, and hints for options that do not exist.

Does not import torch.
"""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

_SYNONYMS = {
    "trainer.n-total-env-steps": "total-timesteps timesteps total-steps num-steps n-steps steps max-steps train-steps "
    "num-timesteps num-env-steps total-env-steps n-timesteps frames num-frames",
    "learning-rate": "lr step-size actor-lr critic-lr",
    "n-envs": "num-envs n-env num-workers n-workers workers num-env",
    "device": "gpu cuda use-gpu use-cuda gpus",
    "env": "env-id env-name environment task",
    "env-kwargs": "env-args env-config",
    "action-repeat": "frame-skip frameskip",
    "discount": "gamma",
    "replay-size": "buffer-size replay-buffer-size memory-size",
    "hidden": "hidden-size hidden-sizes hidden-dim net-arch",
    "updates-per-transition": "utd utd-ratio gradient-steps",
    "n-random-steps": "learning-starts start-steps seed-steps warmup-steps",
    "trainer.eval-every": "eval-freq eval-interval eval-frequency",
    "trainer.checkpoint-every": "save-freq save-interval checkpoint-interval save-every",
    "wandb": "track use-wandb",
    "wandb-project": "project wandb-project-name project-name",
    "runs-dir": "log-dir logdir output-dir out save-dir",
    "name": "exp-name run-name experiment",
    "pictures": "video capture-video render",
}
"""Names of other programs, by this program's flag or the end of it."""

_TYPED = {"parts": "state"}
"""Settings by the names that parts of the library give them."""


def flags_of(settings: Any, prefix: str = "") -> Iterator[str]:
    """Yield the flags of a nested dataclass, or of an instance of one, without dashes in front.

    Settings of the agent, which are those called `settings`, have no prefix.
    """
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name, field.default_factory)  # a class lacks what a factory makes
        name = prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            yield from flags_of(value, "" if name == "settings" else f"{name}.")
        else:
            yield name


def did_you_mean(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Return the end of an error message about an unknown name: "; did you mean X?", or "" if nothing is near.

    Args:
        name: The unknown name.
        known: Names that exist.
        cutoff: Least similarity, from 0 to 1.
    """
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    # A short name may be a part of a long one: return of eval/episode_return.
    near = near or [other for other in known if name and name.lower() in other.lower()][:3]
    return f"; did you mean {' or '.join(near)}?" if near else ""


def as_typed(message: str, settings: Any, args: Sequence[str] = ()) -> str:
    """Return an error message that begins with the name of a setting with its flag instead, where that is certain.

    Args:
        message: A message such as "planner.icem: n_elites is 9, expected ...".
        settings: Nested dataclass that the message is about.
        args: Words of the command line, which decide between flags that end alike.
    """
    found = re.match(r"(?:(?P<path>[\w.-]+): )?(?P<name>\w+)(?P<rest> (?:is|has|holds|was) .*)", message, re.DOTALL)
    if found is None:
        return message
    name = _TYPED.get(found["name"], found["name"]).replace("_", "-")
    end = f"{(found['path'] or '').replace('_', '-').removeprefix('settings')}.{name}".lstrip(".")
    flags = [flag for flag in flags_of(settings) if f".{flag}".endswith(f".{end}")]
    typed = [flag for flag in flags if any(word.partition("=")[0].replace("_", "-") == f"--{flag}" for word in args)]
    chosen = typed or flags
    return f"--{chosen[0]}{found['rest']}" if len(chosen) == 1 else message


def hint(unknown: str, settings: Any) -> str | None:
    """Return the flags that an unknown option may mean, such as "--n-envs"; None if nothing is near.

    Args:
        unknown: The option as it was typed.
        settings: Nested dataclass of the known options.
    """
    name = unknown.partition("=")[0].removeprefix("--").replace("_", "-").lower()
    flags = [flag for flag in flags_of(settings) if flag != name]  # that of a positional argument is no option
    wanted = next((flag for flag, others in _SYNONYMS.items() if name in others.split()), name)
    near = [flag for flag in flags if f".{flag}".endswith(f".{wanted}")]
    if not near:
        ends = {flag: flag.rpartition(".")[2] for flag in flags}
        whole = difflib.get_close_matches(name, flags, n=3, cutoff=0.75)
        last = difflib.get_close_matches(name.rpartition(".")[2], list(ends.values()), n=2, cutoff=0.75)
        near = whole or [flag for flag, end in ends.items() if end in last]
    return " or ".join(f"--{flag}" for flag in near[:4]) or None
