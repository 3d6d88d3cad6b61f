"""Run a study: `python -m experiments.sweep experiments/studies/cartpole.py`.

The same command again goes on with it. Exit codes: 0 all trials are finished, 2 bad input, 3 some are not finished,
75 stopped by a signal.
"""

import os
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import tyro

from experiments.run.command_line import command_line, fail, optional_output, program
from experiments.run.signals import STOPPED, StopRequest
from experiments.sweep.folder import is_done, open_study
from experiments.sweep.search import Draws
from experiments.sweep.study import Study, load

FAILED = 3
"""Exit code of a study with unfinished trials."""


@dataclass(frozen=True)
class SweepConfig:
    """Run a study; the same command goes on with it."""

    study: tyro.conf.Positional[Path]
    """Python file that defines study, or YAML file of its fields."""
    address: str | None = None
    """Address of a Ray cluster: auto, or ray://...; by default Ray is started on this machine."""
    runs_dir: Path = Path("runs")
    """Folder in which the study's folder is created."""
    cpus: int | None = None
    """Number of cores of this machine to use; all by default."""
    wandb: Literal["off", "offline", "online"] | None = None
    """Mode of Weights & Biases for all trials, which form a group; by default the study's own."""
    list: bool = False
    """Only print the commands of all trials; with Optuna, of those drawn so far."""

    def __post_init__(self) -> None:
        if self.cpus is not None and self.cpus < 1:
            raise ValueError(f"--cpus is {self.cpus}, expected at least 1")
        if self.cpus is not None and self.address is not None:
            raise ValueError("--cpus is for this machine; a cluster at --address has its own number")


def main(args: Sequence[str] | None = None) -> None:
    """Read the study, and run it on Ray Tune; nobody has to read its output."""
    with optional_output(report=True):
        _main(sys.argv[1:] if args is None else args)


def _main(words: Sequence[str]) -> None:
    try:
        options: SweepConfig = command_line(SweepConfig, words, prog=program("sweep"))
        study = load(options.study)
        if options.wandb is not None:
            study = replace(study, wandb=options.wandb)
        folder = options.runs_dir / study.name
        draws = Draws(study, folder) if study.learns else None
        trials = study.trials() if draws is None else draws.trials()
        for name, env, reason in ((n, e, reason) for n, envs in study.skip.items() for e, reason in envs.items()):
            print(f"{study.name}: {name} is left out in {env}: {reason}", file=sys.stderr)
        if options.list:
            if draws is not None:
                print(f"{len(draws.made)} of {draws.n_total} draws are made; others depend on them", file=sys.stderr)
            print(*(f"{trial.command(folder)}\n" for trial in trials), sep="", end="")
            return
        with open_study(folder):
            more = draws is not None and draws.more
            if not more and all(is_done(folder / trial.name, trial.words) for trial in trials):
                print(f"{study.name}: all {len(trials)} trials are finished")
                return
            done, stopped_by = _run(study, folder, draws, options)
    except ValueError as error:
        fail(error)
    except (RuntimeError, OSError) as error:  # of Tune, the cluster, a disk: the same command goes on
        fail(error, FAILED)
    if stopped_by is not None and not done:
        print(f"stopped by {stopped_by}; the same command goes on")
        raise SystemExit(STOPPED)
    if not done:
        fail(
            f"not all trials of {study.name} are finished; {folder / 'trials.csv'} has the reasons, the same command "
            "goes on",
            FAILED,
        )


def _run(study: Study, folder: Path, draws: Draws | None, options: SweepConfig) -> tuple[bool, str | None]:
    """Run the study; return True if all trials are finished, and the signal that stopped it."""
    if options.address is None:  # before the import: Ray listens on all interfaces, and refuses who lacks the token
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    try:
        if study.learns:
            import optuna  # noqa: F401
        import ray

        from experiments.sweep.ray_tune import connect, run_study
    except ImportError as error:
        raise ValueError(f"{error.name} is missing, expected the extra ray: pip install 'layeredrl[ray]'") from error
    room = connect(options.address, options.cpus, study.resources)
    with StopRequest() as request:  # after Ray has installed handlers of its own
        try:
            watch = run_study(study, folder, draws, room=room, stop=lambda: bool(request))
            done = set(watch.states.values()) == {"done"} and not (draws is not None and draws.more)
            return done, request.received
        finally:
            ray.shutdown()


if __name__ == "__main__":
    main()
