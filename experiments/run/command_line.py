"""Command lines: dataclasses from their words, and errors in one line. Does not import torch."""

import contextlib
import io
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import tyro

FAULT = 3
"""Exit code of a program that failed although its input was valid; a run is saved before."""


def command_line(cls: Any, args: Sequence[str], *, prog: str, default: Any = tyro.MISSING_NONPROP) -> Any:
    """Parse a command line into a dataclass.

    Args:
        cls: The dataclass.
        args: Words of the command line.
        prog: Name of the program in its help.
        default: Instance that gives the defaults; those of the class if it is missing.

    Raises:
        ValueError: The command line cannot be parsed; the message is one line.
        SystemExit: The command line asks for help.
    """
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output):
            return tyro.cli(cls, args=args, default=default, prog=prog)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(_without_box(output.getvalue()).removeprefix(f"{cls.__name__}: ")) from None


def _without_box(text: str) -> str:
    """Return tyro's boxed message as one line, without frame, title, and advice to read the help."""
    _, *lines = re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()
    lines = [line.strip("│|╰╯ ") for line in lines]
    sections = re.split(r" *[─-]{5,} *", " ".join(lines))
    kept = [part.strip() for part in sections if part and not part.startswith(("For full help", "Argument help"))]
    return "; ".join(kept).removeprefix("Error parsing ")


def fail(message: object, code: int = 2) -> NoReturn:
    """Print the message in one line and end the program; the default exit code, 2, means bad input."""
    print("error: " + " ".join(str(message).split()), file=sys.stderr)
    raise SystemExit(code)
