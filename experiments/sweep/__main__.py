"""Run a study: `python -m experiments.sweep experiments/studies/cartpole.py`.

The same command again goes on where it was stopped. Exit codes: 0 all trials are done, 2 bad input, 3 some are not,
75 asked to stop.
"""

import errno
import fcntl
import json
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import tyro
from rich.console import Console

from experiments.run.command_line import command_line, fail
from experiments.run.signals import STOPPED, StopRequest
from experiments.sweep.guard import CONTROL, METRICS, STOP, SUMMARY, Attempt, Told, newest_checkpoint, write_whole
from experiments.sweep.search import Draws, Suggest, optuna_suggest
from experiments.sweep.study import Study, Trial, load
from experiments.sweep.table import Metrics, Progress, StudyFiles, StudyView

FAILED = 3
"""Exit code of a study of which not all trials are done."""

PROGRAM = ("python", "-m", "experiments.train")
"""What trains; it takes `Trial.arguments`, leaves summary.json when all is done, and its exit codes are those of
`experiments.train`."""

ROOT = Path(__file__).parents[2]
LOOK_S = 2.0  # between two looks at the runs; more often tells a person nothing
WRITE_S = 20.0  # between two versions of study.json and trials.csv while no trial ends
GIVE_UP_S = 20.0  # for tries that do not begin, when the study stops: they wait for a machine, or a worker to start
LONGEST_PAUSE_S = 60.0  # before a trial is tried again


class Pool(Protocol):
    """Makes tries somewhere; `RayPool` is one."""

    def room(self) -> int:
        """How many tries can be made side by side."""
        ...

    def submit(self, token: str, attempt: str) -> None:
        """Have a try made; `attempt` is an `Attempt` as JSON."""
        ...

    def wait(self, seconds: float) -> list[tuple[str, Told]]:
        """Those that have ended, after so many seconds at most."""
        ...


class Sweep:
    """A study on its way: which trials are done, under way, and to be tried again.

    What is done is told by the folders of the runs, whoever made them; nothing is lost with this process.

    Args:
        study: What to do.
        folder: Of the study, in which the trials have theirs.
        pool: Makes the tries.
        program: What trains.
        console: Where to tell of it.
        lease_s: See `Attempt`.
        suggest: Chooses the settings of a search that learns; Optuna by default.

    Raises:
        ValueError: The draws so far are of another search.
    """

    def __init__(
        self,
        study: Study,
        folder: Path,
        pool: Pool,
        *,
        program: Sequence[str] = PROGRAM,
        console: Console | None = None,
        lease_s: float = Attempt.lease_s,
        suggest: Suggest | None = None,
    ) -> None:
        self.study, self.folder, self.pool, self.program, self.lease_s = study, folder, pool, tuple(program), lease_s
        self.draws = Draws(study, folder, suggest) if study.learns else None
        trials = study.trials() if self.draws is None else self.draws.trials()
        self.progress = [self._progress(trial) for trial in trials]
        self.view = StudyView(study, console or Console())
        self._files = StudyFiles(study, folder)
        self._own = folder / "sweep"
        self._under_way: dict[str, Progress] = {}
        self._looked_s = self._written_s = self._draw_s = 0.0
        self._stopping_s: float | None = None

    @property
    def done(self) -> bool:
        """Whether all trials are."""
        return not self._draws_more and all(one.state == "done" for one in self.progress)

    def run(self, stop: Callable[[], bool] = lambda: False) -> None:
        """Go on until every trial is done or has failed, or until `stop`; then all that train save and end."""
        self._own.mkdir(parents=True, exist_ok=True)
        write_whole(self._own / CONTROL, "go", "new")
        try:
            for one in self.progress:
                one.metrics.update()
                self._begin(one)
            self._draw()
            self._write()
            while self._goes_on():
                for token, told in self.pool.wait(0.5):
                    self._take(self._under_way.pop(token), told)
                if stop() and self._stopping_s is None:
                    self._stop()
                for one in self.progress if self._stopping_s is None else ():
                    if one.state == "waiting" and not one.token and time.monotonic() >= one.due_s:
                        self._begin(one)
                if self._stopping_s is None:
                    self._draw()
                self._look()
        finally:
            self._look(now=True)
            self._write()
            self.view.close()

    def _goes_on(self) -> bool:
        if self._stopping_s is None:
            return self._draws_more or any(one.state in ("waiting", "running") for one in self.progress)
        # Nobody waits for tries that no machine has room for; should one begin later, it ends at once.
        waited = time.monotonic() - self._stopping_s > GIVE_UP_S
        return any(one.state == "running" or not waited for one in self._under_way.values())

    @property
    def _draws_more(self) -> bool:
        return self.draws is not None and self.draws.more

    def _draw(self) -> None:
        """Begin further draws of a search that learns while there is room; the later it draws, the more it knows."""
        while self.draws is not None and self.draws.more and time.monotonic() >= self._draw_s:
            if sum(one.state in ("waiting", "running") for one in self.progress) >= self.pool.room():
                return
            try:
                trials = self.draws.next(self.progress)
            except OSError as error:  # tried again later: a study that is stopped could not go on with such a draw
                self.view.say(f"{self.draws.path.name} cannot be written: {error}")
                self._draw_s = time.monotonic() + WRITE_S
                return
            for trial in trials:
                self.progress.append(self._progress(trial))
                self._begin(self.progress[-1])

    def _progress(self, trial: Trial) -> Progress:
        return Progress(trial, Metrics(self.folder / trial.name / METRICS))

    def _begin(self, one: Progress) -> None:
        """Try a trial, unless it is done."""
        if self._is_done(one.trial):
            one.state, one.message = "done", ""
            return
        trial, folder = one.trial, self.folder / one.trial.name
        one.token, one.state = uuid.uuid4().hex, "waiting"
        one.tries, one.n_saved = one.tries + 1, newest_checkpoint(folder)
        attempt = Attempt(
            trial=trial.name,
            token=one.token,
            sweep=str(self._own.absolute()),
            folder=str(folder.absolute()),
            command=[*self.program, *trial.arguments(self.folder)],
            words=list(trial.words),
            cwd=str(Path.cwd()),
            path=os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
            lease_s=self.lease_s,
            beat_s=min(Attempt.beat_s, self.lease_s / 10),
        )
        self._under_way[one.token] = one
        self.pool.submit(one.token, json.dumps(asdict(attempt)))

    def _take(self, one: Progress, told: Told) -> None:
        """Note how a try ended, and decide whether there is another one."""
        one.token, one.message = "", told["message"]
        further = newest_checkpoint(self.folder / one.trial.name) > one.n_saved
        one.metrics.reset()  # once more as a whole: while it grew, a row may have been missed
        one.metrics.update()
        if told["outcome"] == "done":
            one.state, value = "done", one.metrics.episode_return
            self._say(one, f"done, {one.metrics.steps} steps" + ("" if value is None else f", return {value:.2f}"))
            if self.draws is not None and self.draws.score([one]) is None:
                self._say(one, f"has no {self.draws.search.metric} to learn from; its draw counts as bad")
        elif told["outcome"] == "bad":
            one.state = "failed"
            self._say(one, f"bad settings, not tried again: {one.message}")
        elif told["outcome"] == "stopped" and self._stopping_s is not None:
            one.state = "stopped"
            self._say(one, f"stopped{f': {one.message}' if one.message else ''}; the same command goes on")
        else:  # it crashed, its worker was lost or asked to stop, or another try had its place
            one.failures = 1 if further else one.failures + 1
            gives_up = one.failures > self.study.retries
            one.state = "failed" if gives_up else "waiting"
            one.due_s = time.monotonic() + (0 if one.failures == 1 else min(2.0**one.failures, LONGEST_PAUSE_S))
            what = f"given up after {one.failures} tries" if gives_up else "is tried again"
            self._say(one, f"{told['outcome']}, {what}: {one.message}")
        if time.monotonic() - self._written_s > 1:  # of many short trials, not after each
            self._write()

    def _stop(self) -> None:
        write_whole(self._own / CONTROL, STOP, "new")
        self._stopping_s = time.monotonic()
        self.view.say("stopping: trials that train save and end; asked once more, this process leaves at once")

    def _look(self, *, now: bool = False) -> None:
        """See which tries train, and how far they are."""
        if not now and time.monotonic() - self._looked_s < LOOK_S:
            return
        for one in self._under_way.values():
            try:
                holder = json.loads((self._own / f"{one.trial.name}.lease").read_text())["token"]
            except (OSError, ValueError):
                holder = None
            one.state = "running" if holder == one.token else "waiting"
            one.metrics.update()
        self.view.update(self.progress)
        if time.monotonic() - self._written_s > WRITE_S:
            self._write()
        self._looked_s = time.monotonic()

    def _is_done(self, trial: Trial) -> bool:
        """Whether the run has ended, with these settings; with others the training itself says what can be done."""
        try:
            known = json.loads((self._own / f"{trial.name}.done").read_text()) == list(trial.words)
        except (OSError, ValueError):
            return False
        return known and (self.folder / trial.name / SUMMARY).exists()

    def _write(self) -> None:
        try:
            self._files.write(self.progress)
        except OSError as error:  # trials go on, and so may the disk
            self.view.say(f"study.json and trials.csv cannot be written: {error}")
        self._written_s = time.monotonic()

    def _say(self, one: Progress, line: str) -> None:
        self.view.say(f"{one.trial.name}: {line}")


@contextmanager
def open_study(folder: Path) -> Iterator[None]:
    """Make a study's folder, and hold it against another driver.

    Raises:
        ValueError: It is something else, cannot be written, or another process has it.
    """
    if (folder / "config.json").exists():
        raise ValueError(f"{folder} is the folder of a run, not of a study; give the study another name")
    try:
        (folder / "sweep").mkdir(parents=True, exist_ok=True)
        file = (folder / "sweep" / "lock").open("w")
    except OSError as error:
        raise ValueError(f"{folder} cannot be written: {error.strerror or error}") from error
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            taken = error.errno in (errno.EACCES, errno.EAGAIN)
            told = "is in use: another process runs this study" if taken else f"cannot be locked: {error.strerror}"
            raise ValueError(f"{folder} {told}") from error
        yield


@dataclass(frozen=True)
class SweepConfig:
    """Run a study; the same command goes on with it."""

    study: tyro.conf.Positional[Path]
    """A Python file that defines study, or a YAML file of its fields."""
    address: str | None = None
    """Of a Ray cluster: auto, or ray://...; a Ray of this machine by default."""
    runs_dir: Path = Path("runs")
    """Where the study's folder is."""
    cpus: int | None = None
    """Cores of this machine to use; all by default."""
    wandb: Literal["off", "offline", "online"] | None = None
    """Where the trials log to Weights & Biases, as a group; what the study says by default."""
    list: bool = False
    """Only print the commands of all trials; of a search that learns, of those known so far."""

    def __post_init__(self) -> None:
        if self.cpus is not None and self.cpus < 1:
            raise ValueError(f"--cpus is {self.cpus}, expected at least 1")
        if self.cpus is not None and self.address is not None:
            raise ValueError("--cpus is of this machine; a cluster at --address has told Ray its own")


def main(args: Sequence[str] | None = None) -> None:
    """Read the study, and run it on Ray."""
    try:
        words = sys.argv[1:] if args is None else args
        options: SweepConfig = command_line(SweepConfig, words, prog="python -m experiments.sweep")
        study = load(options.study)
        if options.wandb is not None:
            study = replace(study, wandb=options.wandb)
        folder = options.runs_dir / study.name
        draws = Draws(study, folder) if study.learns else None
        trials = study.trials() if draws is None else draws.trials()
        if options.list:
            if draws is not None:
                print(draws.told(), file=sys.stderr)
            print(*(f"{trial.command(folder)}\n" for trial in trials), sep="", end="")
            return
        suggest = optuna_suggest() if study.learns else None
        with open_study(folder):
            done, stopped_by = _run(study, folder, suggest, options)
    except ValueError as error:
        fail(error)
    if stopped_by is not None and not done:
        print(f"stopped by {stopped_by}; the same command goes on")
        raise SystemExit(STOPPED)
    if not done:
        fail(
            f"not all trials of {study.name} are done; {folder / 'trials.csv'} says why, the same command goes on",
            FAILED,
        )


def _run(study: Study, folder: Path, suggest: Suggest | None, options: SweepConfig) -> tuple[bool, str | None]:
    """Whether all trials are done, and the signal that stopped them."""
    from experiments.sweep.tasks import RayPool

    pool = RayPool(options.address, options.cpus, study.resources)
    with StopRequest() as stop:  # only now: Ray has handlers of its own
        try:
            if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # a connection that is lost asks to stop, too
                signal.signal(signal.SIGHUP, lambda number, frame: signal.raise_signal(signal.SIGTERM))
            sweep = Sweep(study, folder, pool, suggest=suggest)
            if not pool.fits:
                sweep.view.say("no machine of the cluster has room for a trial now; the study waits for one")
            sweep.run(lambda: bool(stop))
            sweep.view.say(sweep.view.summary(sweep.progress))
            return sweep.done, stop.received
        finally:
            pool.close()


if __name__ == "__main__":
    main()
