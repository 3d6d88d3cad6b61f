"""Alternating measurements, and the page of a benchmark: command, tables, and the machine."""

import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from experiments.report.tables import Table


def write_page(path: Path, title: str, command: str, parts: Sequence[str | Table], machine: str) -> None:
    """Write a Markdown page of paragraphs and tables, with the command and the machine; print it, too.

    Args:
        path: File to write.
        title: Title of the page.
        command: Command that makes the page.
        parts: Paragraphs and tables, in order.
        machine: Last line, from `machine_line`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    body = [part.markdown().strip() if isinstance(part, Table) else part.strip() for part in parts]
    text = "\n\n".join([f"# {title}", body[0], f"    {command}", *body[1:], machine])
    path.write_text(f"{text}\n")
    print(text, flush=True)


def timed(function: Callable[[], object]) -> float:
    """Return the process CPU seconds of a call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def alternate(*functions: Callable[[], object], rounds: int) -> list[list[float]]:
    """Return the process CPU seconds of each call of functions that alternate, by function, after a warm-up."""
    for function in functions:
        function()
    times = [[timed(function) for function in functions] for _ in range(rounds)]
    return [list(column) for column in zip(*times, strict=True)]


def machine_line(*packages: str, threads: int | None = None) -> str:
    """Return a line with the processor, the versions of the installed packages, and the number of threads."""
    versions = [f"Python {platform.python_version()}"]
    for name in ("torch", "numpy", *packages):
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:  # an extra that this measurement did not need
            continue
    used = "" if threads is None else f"; {threads} thread{'s' * (threads > 1)}"
    return f"Machine: {_processor()}; {', '.join(versions)}{used}."


def _processor() -> str:
    """Return the number of cores and the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} cores of {names[0]}" if names else platform.machine()
