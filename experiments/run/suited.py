"""Printing of the settings that were chosen for a task."""

from collections.abc import Sequence
from typing import Any

from agents.recipe import Choice
from experiments.run.config import RunConfig
from experiments.run.wandb_sweep import find_setting
from layeredrl.environments import TaskFacts
from layeredrl.planners.config import PLANNERS

_ALTERNATIVES = {*PLANNERS, "sac", "td3"}
"""Settings that count only if a `kind` or `algorithm` beside them has the same name."""


_NOT_IF_GUIDED = ("value", "discount")
"""Settings of `pets` that do not count where a policy's critics guide it."""


def print_choices(config: RunConfig[Any], facts: TaskFacts, choices: Sequence[Choice]) -> None:
    """Print the settings that were chosen for the task, with reasons.

    Settings that were given otherwise are left out, as are those of parts that are not used.
    """
    kept = [x for x in choices if find_setting(config, x.name) == x.value and _used(config, x.name)]
    print(f"{config.env}: {described(facts)}. Settings chosen for it:")
    rows = [(_typed(x.name.replace("_", "-"), x.value), x.reason) for x in kept]
    width = max((len(flag) for flag, _ in rows), default=0)
    for flag, reason in rows:
        print(f"  {flag:{width}}  {reason}")


def _used(config: RunConfig[Any], name: str) -> bool:
    """Return False for a setting of a planner or an algorithm that is not the chosen one, or that guidance replaces."""
    if name in _NOT_IF_GUIDED and getattr(config.settings, "guided", False):
        return False
    *path, part, _ = ("", *name.split("."))
    owner = config.settings
    for each in path[1:]:
        owner = getattr(owner, each, None)
    chosen = getattr(owner, "kind", None) or getattr(owner, "algorithm", part)
    return part == chosen or part not in _ALTERNATIVES


def described(facts: TaskFacts) -> str:
    """Facts of a task in a few words."""
    actions = f"{facts.action_dim} {'choices' if facts.discrete else 'actions' if facts.action_dim > 1 else 'action'}"
    dimensions = "dimension" if facts.state_dim == 1 else "dimensions"
    parts = [f"{facts.state_dim} observation {dimensions}, {actions}"]
    if facts.episode_steps is not None:
        parts.append(f"episodes of at most {facts.episode_steps} steps")
    if facts.ends_after is not None:
        parts.append(f"which end after {facts.ends_after:.0f} random steps")
    learned = [name for name in ("reward", "termination") if not getattr(facts, f"{name}_known")]
    if learned:
        parts.append(f"{' and '.join(learned)} to be learned")
    if facts.silent:
        parts.append("where random actions find no reward")
    return ", ".join(parts)


def _typed(name: str, value: Any) -> str:
    """Return a setting as it is typed on the command line."""
    if isinstance(value, bool):
        path, dot, last = name.rpartition(".")
        return f"--{name}" if value else f"--{path}{dot}no-{last}"
    return f"--{name} {' '.join(map(str, value)) if isinstance(value, tuple) else value}"
