"""Folders of runs that were written without training, for tests of their readers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure


def write_run(
    folder: Path,
    *,
    agent: str = "pets",
    env: str = "ContinuousCartPole-v0",
    seed: int = 0,
    level: float = 100.0,
    n_steps: int = 1000,
    finished: bool = True,
    settings: Mapping[str, Any] | None = None,
    **common: Any,
) -> Path:
    """Write a run of ten episodes whose returns climb from 0 to a level; a second lasts ten steps."""
    folder.mkdir(parents=True)
    trainer = {"n_total_env_steps": n_steps}
    config = {"agent": agent, "preset": "demo", "env": env, "seed": seed, "name": folder.name, "trainer": trainer}
    (folder / "config.json").write_text(json.dumps({**config, **common, "settings": dict(settings or {})}))
    lines = ["n_total_env_steps,env/episode_return,time/seconds,time/cpu_seconds,model/loss"]
    end = n_steps if finished else n_steps // 2
    for i in range(1, 11):
        step = end * i // 10
        lines += [f"{step},{level * min(i, 8) / 8 + 0.001 * seed},{step / 10},{step / 20},", f"{step},,,,{1 / i}"]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    if finished:
        (folder / "summary.json").write_text(json.dumps({"agent": agent, "return, best": f"{level:.1f}"}))
    return folder


def write_study(folder: Path, levels: Mapping[str, float], seeds: int = 5, **kwargs: Any) -> Path:
    """Write runs of several agents, which differ by their levels more than by their seeds."""
    for agent, level in levels.items():
        for seed in range(seeds):
            write_run(folder / f"{agent}-{seed}", agent=agent, seed=seed, level=level, **kwargs)
    return folder


def draw(path: Path) -> None:
    """Write a small picture."""
    path.parent.mkdir(exist_ok=True)
    figure = Figure(figsize=(1, 1))
    figure.subplots().plot(np.arange(3))
    figure.savefig(path, dpi=40)
