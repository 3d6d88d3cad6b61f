"""The machine that a measurement was made on."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def machine_line(*packages: str, threads: int | None = None) -> str:
    """What a table of measurements ends with: processor, versions of those packages that are there, threads if told."""
    versions = []
    for name in ("torch", "numpy", *packages):
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:  # an extra that this measurement did without
            continue
    told = ", ".join([f"Python {platform.python_version()}", *versions])
    used = "" if threads is None else f"; {threads} thread{'s' * (threads > 1)}"
    return f"Machine: {_processor()}; {told}{used}."


def _processor() -> str:
    """Number and name of the processor's cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} cores of {names[0]}" if names else platform.machine()
