"""Versions of the code that a run is trained with, and in a git checkout its commit: the file code.json."""

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
from experiments.run.folder import CODE, write_whole

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 5.0
"""Time limit of git in seconds: it takes milliseconds, and on a disk that hangs the commit is left out."""


def versions() -> dict[str, str]:
    """Return the versions of the code and of its main dependencies, by name."""
    return {
        "layeredrl": layeredrl.__version__,
        **_commit(ROOT),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "gymnasium": gym.__version__,
        "numpy": np.__version__,
    }


def record(folder: Path, n_total_env_steps: int) -> None:
    """Write a run's code.json; versions that have changed are kept with the step until which they were used.

    Args:
        folder: Folder of the run.
        n_total_env_steps: Total environment steps so far, with the versions in the file.
    """
    now = versions()
    earlier = _read(folder / CODE) if n_total_env_steps else {}
    kept = {name: value for name, value in earlier.items() if ", until step " in name}
    changed = {name: value for name, value in earlier.items() if name not in kept and now.get(name) != value}
    # Of several commands that resumed from one step, the first one trained the steps before it.
    kept = {f"{name}, until step {n_total_env_steps}": value for name, value in changed.items()} | kept
    with contextlib.suppress(OSError):  # a full disk is reported by the checkpoints
        write_whole(folder / CODE, json.dumps(now | kept, indent=2) + "\n")


def _read(path: Path) -> dict[str, str]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):  # a run of an older version has no such file
        return {}
    return content if isinstance(content, dict) else {}


def _commit(root: Path) -> dict[str, str]:
    """Return the commit, and if tracked files differ from it; an empty dict if `root` is no checkout."""
    if not (root / ".git").exists():  # git would find the checkout of a folder above
        return {}
    # Without optional locks, git does not disturb another git that runs at the same time.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    command = ["git", "--no-optional-locks", "status", "--porcelain=v2", "--branch", "--untracked-files=no"]
    try:
        status = subprocess.run(command, cwd=root, env=environment, capture_output=True, timeout=TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    lines = status.stdout.decode(errors="replace").splitlines()
    commits = [line.split()[-1] for line in lines if line.startswith("# branch.oid ")]
    if not commits:
        return {}
    changed = any(not line.startswith("#") for line in lines)
    return {"commit": commits[0], "uncommitted changes": "yes" if changed else "no"}
