"""Command lines: dataclasses from their words, and one line on what is wrong with them. Light: it loads no torch."""

import contextlib
import io
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import tyro


def command_line(cls: Any, args: Sequence[str], *, prog: str, default: Any = tyro.MISSING_NONPROP) -> Any:
    """An object of a dataclass, its fields from the command line.

    Raises:
        ValueError: The command line cannot be parsed; the message is one line.
        SystemExit: It asks for help.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(cls, args=args, default=default, prog=prog)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(_without_box(said.getvalue()).removeprefix(f"{cls.__name__}: ")) from None


def _without_box(text: str) -> str:
    """What tyro says in a box of several lines: without its frame, its title, and advice to read the help."""
    _, *lines = re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()
    lines = [line.strip("│|╰╯ ") for line in lines]
    sections = re.split(r" *[─-]{5,} *", " ".join(lines))
    told = [part.strip() for part in sections if part and not part.startswith(("For full help", "Argument help"))]
    return "; ".join(told).removeprefix("Error parsing ")


def fail(message: object, code: int = 2) -> NoReturn:
    """End the program with one line; the exit code is that of bad input by default."""
    print("error: " + " ".join(str(message).split()), file=sys.stderr)
    raise SystemExit(code)
