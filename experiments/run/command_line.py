"""Command lines, errors in one line, and output that may be closed. Does not import torch."""

import contextlib
import dataclasses
import errno
import functools
import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn, TextIO, cast

import tyro

from experiments.run.flags import as_typed, hint

FAULT = 3
"""Exit code of a program that failed although its input was valid; a run is saved before."""


def program(name: str) -> str:
    """Return what a person types to run a program: `layeredrl train`, or else `python -m experiments.train`."""
    if sys.argv[0].startswith("layeredrl "):  # the command `layeredrl` has started this process
        return f"layeredrl {name.replace('_', '-')}"
    return f"python -m experiments.{name}"


def command_line(
    cls: Any,
    args: Sequence[str],
    *,
    prog: str,
    default: Any = tyro.MISSING_NONPROP,
    shorten: Callable[[str], str] | None = None,
) -> Any:
    """Parse a command line into a dataclass; --help-all asks for all of its help.

    Args:
        cls: The dataclass.
        args: Words of the command line.
        prog: Name of the program in its help.
        default: Instance that gives the defaults; those of the class if it is missing.
        shorten: Makes what --help prints of all help.

    Raises:
        ValueError: The command line cannot be parsed; the message is one line.
        SystemExit: The command line asks for help.
    """
    output = io.StringIO()
    if shorten is not None and not {"-h", "--help"}.isdisjoint(args):
        with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit), _narrow():
            tyro.cli(cls, args=["--help"], default=default, prog=prog)
        print(shorten(output.getvalue()))
        raise SystemExit(0)
    words = ["--help" if word == "--help-all" else word for word in args]
    known = default if dataclasses.is_dataclass(default) else cls
    try:
        with contextlib.redirect_stderr(output):
            return tyro.cli(cls, args=words, default=default, prog=prog)
    except ValueError as error:  # of settings that have no prefix
        raise ValueError(as_typed(str(error), known, args)) from error
    except SystemExit as stop:
        if not stop.code:
            raise
        message = _without_box(output.getvalue()).removeprefix(f"{getattr(cls, '__origin__', cls).__name__}: ")
        raise ValueError(as_typed(_with_hints(message, known), known, args)) from None


@contextlib.contextmanager
def _narrow() -> Iterator[None]:
    """Let tyro print options one below the other; in a wide terminal it prints them side by side."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "80"
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def _with_hints(message: str, known: Any) -> str:
    """Return tyro's message about unrecognized options with the flags that they may mean."""
    unrecognized = message.partition("; ")[0]
    if not unrecognized.startswith("Unrecognized options: "):
        return message
    options = [word for word in unrecognized.partition(": ")[2].split(", ") if word.startswith("--")]
    hints = [f"for {option} use {flags}" for option in options if (flags := hint(option, known))]
    return "; ".join([unrecognized, *hints]) if hints else message


def _without_box(text: str) -> str:
    """Return tyro's boxed message as one line, without frame, title, and advice to read the help."""
    _, *lines = re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()
    lines = [line.strip("│|╰╯ ") for line in lines]
    sections = re.split(r" *[─-]{5,} *", " ".join(lines))
    kept = [part.strip() for part in sections if part and not part.startswith(("For full help", "Argument help"))]
    return "; ".join(kept).removeprefix("Error parsing ")


def fail(message: object, code: int = 2) -> NoReturn:
    """Print the message in one line and end the program; the default exit code, 2, means bad input.

    An error that is a shortage of resources has the exit code `FAULT` in any case, because it may be gone next time.
    """
    reason = shortage(message) if isinstance(message, BaseException) else None
    if reason is not None:
        message, code = reason, FAULT
    with contextlib.suppress(OSError):  # standard error may be closed; the exit code must stay the same
        print("error: " + " ".join(str(message).split()), file=sys.stderr, flush=True)
    raise SystemExit(code)


def command(*, needs_output: bool = True) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Decorate the `main` of a command: standard output may be closed, and a shortage of resources is one line.

    Args:
        needs_output: If True, output that cannot be written, to a full disk for instance, is an error. If False, the
            program goes on without output. A closed pipe, of `head` for instance, is no error in either case.
    """

    def decorate(main: Callable[[], None]) -> Callable[[], None]:
        @functools.wraps(main)
        def wrapper() -> None:
            with optional_output(report=not needs_output) as output:
                try:
                    main()
                except Exception as error:
                    reason = shortage(error)
                    if reason is None:
                        raise
                    fail(reason, FAULT)
            if needs_output and output.error is not None and not isinstance(output.error, BrokenPipeError):
                fail(f"standard output cannot be written: {output.error}", FAULT)

        return wrapper

    return decorate


def shortage(error: BaseException) -> str | None:
    """Return a description of the resource that the machine lacks; None for any other error."""
    text = " ".join(str(error).split())
    # torch, which is not imported here: its CPU allocator raises a plain RuntimeError, its CUDA allocator a subclass.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in text:
        return f"out of memory: {text or type(error).__name__}"
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.ENOMEM:
        return f"out of memory: {text}"
    if number in (errno.EMFILE, errno.ENFILE):
        return f"too few file descriptors: {text}; `ulimit -n` shows the limit"
    if number == errno.EAGAIN or "can't start new thread" in text:
        return f"too few processes or threads: {text}; `ulimit -u` shows the limit"
    return None


@contextlib.contextmanager
def optional_output(*, report: bool) -> Iterator["OptionalOutput"]:
    """Let the program go on when its standard output fails, for instance because `head` has closed it.

    Args:
        report: If True, the first failure is reported on standard error.
    """
    real, output = sys.stdout, OptionalOutput(sys.stdout, report=report)
    sys.stdout = cast(Any, output)
    try:
        yield output
    finally:
        output.flush()
        sys.stdout = real


class OptionalOutput:
    """Text stream that passes everything on until the first error, and discards the rest.

    Attributes:
        error: The first error of the stream; None before.
    """

    def __init__(self, stream: TextIO | None, *, report: bool) -> None:
        self.error: OSError | None = None
        self._stream, self._report = stream, report

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text; return its length."""
        self._try(lambda stream: stream.write(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write lines."""
        self.write("".join(lines))

    def flush(self) -> None:
        """Flush the stream."""
        self._try(lambda stream: stream.flush())

    def _try(self, call: Callable[[TextIO], object]) -> None:
        if self._stream is None or self.error is not None:
            return
        try:
            call(self._stream)
        except OSError as error:
            self.error = error
            with contextlib.suppress(OSError, ValueError):  # what is buffered goes nowhere when the program ends
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)
            if self._report:
                with contextlib.suppress(OSError):
                    reason = error.strerror or error
                    print(f"standard output is lost ({reason}); the program goes on without it", file=sys.stderr)
