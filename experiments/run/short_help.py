"""Short help of `experiments.train`: the options that people look for first, on one screen."""

import re
import textwrap
from collections.abc import Collection, Iterator, Mapping

FIRST = ("preset", "env", "seed", "trainer.n-total-env-steps", "n-envs", "device")
SEARCHED = ("learning-rate", "horizon")
"""Last parts of names of settings, which agents have in different places."""
LAST = ("name", "fresh", "wandb")
SWITCHES = {"value-learning": "value", "guidance": "guided"}
"""Options without which a part of the settings is not used."""
WIDTH, COLUMN = 80, 33
"""Width of the screen, and of the options on it, in letters."""


def short_help(full: str, *, usage: str, about: str, texts: Mapping[str, str], chosen: Collection[str] = ()) -> str:
    """Return short help, made of the full help.

    Args:
        full: Help of all settings, as tyro prints it.
        usage: How to call the program.
        about: Description of the program.
        texts: Other texts than those of the full help, by name of the option.
        chosen: Names of options whose defaults are chosen for the task.
    """
    options = _options(full)
    searched = [name for name in options if name.rpartition(".")[2] in SEARCHED and _used(name, options)]
    lines = [f"usage: {usage} [options]", "", *textwrap.wrap(about, WIDTH), ""]
    for name in [*FIRST, *searched, *LAST]:
        if name in options:
            head, text = options[name]
            if name in chosen:
                text = text.removesuffix(_default(text)) + " (default: chosen for the task)"
            lines += _entry(head, texts[name] + _default(text) if name in texts else text)
    return "\n".join([*lines, "", f"Help of all {len(options)} settings: {usage} --help-all"])


def _options(full: str) -> dict[str, tuple[str, str]]:
    """Option with its values, and text, by name of the option without dashes."""
    found: dict[str, tuple[str, str]] = {}
    name = ""
    for line in re.sub(r"\x1b\[[0-9;]*m", "", full).splitlines():
        line = re.sub(r"^[│|]|[│|]?\s*$", "", line)  # the frame, which only some outputs have
        option = re.match(r" {1,2}--([\w.-]+)", line)
        if option:
            name = option[1]
            head, _, text = line.strip().partition("  ")
            found[name] = (head.partition(", -")[0], text.strip())
        elif name and re.match(r" {4,}\S", line):
            head, text = found[name]
            found[name] = (head, f"{text} {line.strip()}".strip())
    return found


def _used(name: str, options: Mapping[str, tuple[str, str]]) -> bool:
    """Return False for a setting of a part that is not used, such as planner.cem where planner.kind is icem."""
    part = name.split(".")
    _, switch = options.get(SWITCHES.get(part[0], ""), ("", ""))
    if _default(switch) == " (default: False)":
        return False
    for i in range(1, len(part) - 1):
        _, kind = options.get(".".join([*part[:i], "kind"]), ("", ""))
        if kind and part[i] != _default(kind).strip(" ()").removeprefix("default: ").replace("_", "-"):
            return False
    return True


def _default(text: str) -> str:
    found = re.search(r" \(default: .*\)$", text)
    return found[0] if found else ""


def _entry(head: str, text: str) -> Iterator[str]:
    """Lines of an option: the option in the left column, the text in the right one."""
    left, right = f"  {head}", textwrap.wrap(text, WIDTH - COLUMN, break_on_hyphens=False)
    if len(left) >= COLUMN:
        yield left
        left = ""
    for line in right:
        yield f"{left:<{COLUMN}}{line}"
        left = ""
