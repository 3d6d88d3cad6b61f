"""Which code a run is made with: its code.json, which tells the versions and, in a git checkout, the commit."""

import contextlib
import json
import os
import platform
import subprocess
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch

import layeredrl
from experiments.run.parts import CODE, write_whole

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 5.0
"""Git takes some milliseconds; on a disk that hangs, the run does without the commit."""


def versions() -> dict[str, str]:
    """Of the code and of what it computes with, name by name."""
    return {
        "layeredrl": layeredrl.__version__,
        **_commit(ROOT),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "gymnasium": gym.__version__,
        "numpy": np.__version__,
    }


def record(folder: Path, n_total_env_steps: int) -> None:
    """Write a run's code.json; what has changed since the run was begun stays, with the step until which it held.

    Args:
        folder: Of the run.
        n_total_env_steps: Environment steps that it has taken with what the file tells so far.
    """
    now = versions()
    earlier = _read(folder / CODE) if n_total_env_steps else {}
    kept = {name: value for name, value in earlier.items() if ", until step " in name}
    changed = {name: value for name, value in earlier.items() if name not in kept and now.get(name) != value}
    # Of several that went on from one step, the first made what is before it.
    kept = {f"{name}, until step {n_total_env_steps}": value for name, value in changed.items()} | kept
    with contextlib.suppress(OSError):  # a disk that is full is told of by what cannot do without
        write_whole(folder / CODE, json.dumps(now | kept, indent=2) + "\n")


def _read(path: Path) -> dict[str, str]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):  # a run of an older version has none
        return {}
    return content if isinstance(content, dict) else {}


def _commit(root: Path) -> dict[str, str]:
    """The commit, and whether files that git knows differ from it; nothing if this is no checkout."""
    if not (root / ".git").exists():  # git would find that of a folder above
        return {}
    # Without optional locks, git does not get in the way of another one that somebody uses meanwhile.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    command = ["git", "--no-optional-locks", "status", "--porcelain=v2", "--branch", "--untracked-files=no"]
    try:
        told = subprocess.run(command, cwd=root, env=environment, capture_output=True, timeout=TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    lines = told.stdout.decode(errors="replace").splitlines()
    commits = [line.split()[-1] for line in lines if line.startswith("# branch.oid ")]
    if not commits:
        return {}
    changed = any(not line.startswith("#") for line in lines)
    return {"commit": commits[0], "uncommitted changes": "yes" if changed else "no"}
