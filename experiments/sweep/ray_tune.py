"""Studies on Ray Tune: each trial of Tune trains one run folder. Needs the extra `ray`."""

import csv
import io
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # trials that ask for no GPU see none
    "RAY_AIR_NEW_OUTPUT": "0",  # else Tune ignores the reporter below
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # runs have their own logs
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune kills workers 15 s after Ctrl-C; `Watch.stop_all` lets runs be saved
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # `Watch` prints a line in place of a traceback
}  # read when Ray is imported

import ray
from ray import tune
from ray.tune.search import Searcher

from experiments.sweep.folder import STOP, SWEEP, is_done, newest_checkpoint, read_metrics, write_whole
from experiments.sweep.search import Draws
from experiments.sweep.study import Resources, Study, Trial
from experiments.sweep.training import Job, Training

PROGRAM = ("python", "-m", "experiments.train")
"""Program that trains: takes `Trial.arguments`, has the exit codes of `experiments.train`, and leaves summary.json."""

_LOOK_S = 30.0  # between two looks at the run folders


def train_run(config: dict[str, Any]) -> dict[str, Any]:
    """Trainable of Tune: trains a run folder, or goes on with it. The checkpoints are those of the run, not of Tune.

    It reports its end only: `tune.report` waits for the scheduler, which may be lost while the lease must be renewed.
    """
    job = Job(**json.loads(config["job"]))
    state, message = Training(job).run()
    return {**read_metrics(job.run), "state": state, "message": message, "done": True}


class Watch(tune.Callback, tune.Stopper):
    """Table of a study's trials, for people; and the end of a study that is asked to stop.

    Args:
        study: The study.
        folder: Its folder.
        stop: Returns True when the study is asked to stop.
    """

    def __init__(self, study: Study, folder: Path, stop: Callable[[], bool]) -> None:
        self.study, self.folder, self.stop = study, folder, stop
        self.trials: list[Trial] = []
        self._news: dict[str, tuple[str, str]] = {}  # state and message by trial
        self._saved: dict[str, int] = {}  # steps of the newest checkpoint by trial
        self._n_running, self._looked_s, self._asked, self._ended = 0, 0.0, False, False

    @property
    def states(self) -> dict[str, str]:
        """State by trial: done, where the run folder is finished, or else the last one that is known."""
        known = {trial.name: self._news.get(trial.name, ("waiting", ""))[0] for trial in self.trials}
        if self._ended:  # a trial that began meanwhile has ended at once, without a call of Tune
            known = {name: "stopped" if state == "running" else state for name, state in known.items()}
        return known | {t.name: "done" for t in self.trials if is_done(self.folder / t.name, t.words)}

    def write(self) -> str:
        """Write trials.csv, and return the number of trials by state; a full disk does not stop the trials."""
        states, text = self.states, io.StringIO()
        names = list(dict.fromkeys(name for trial in self.trials for name in trial.settings))
        numbers = ["steps", "seconds", "steps_per_second", "return", "evaluation"]
        columns = ["trial", "agent", "environment", "seed", *names, "state", *numbers, "message", "command"]
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        for trial in self.trials:
            place = {"trial": trial.name, "agent": trial.agent, "environment": trial.environment, "seed": trial.seed}
            news = {"state": states[trial.name], "message": self._news.get(trial.name, ("", ""))[1]}
            found = read_metrics(self.folder / trial.name)
            writer.writerow({**place, **trial.settings, **news, **found, "command": trial.command(self.folder)})
        try:
            write_whole(self.folder / "trials.csv", text.getvalue())
        except OSError as error:
            print(f"trials.csv cannot be written: {error}", flush=True)
        return ", ".join(f"{n} {state}" for state, n in sorted(Counter(states.values()).items()))

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._note(trial, "running", "")
        self._limit_failures(trial)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._note(trial, trial.last_result["state"], trial.last_result["message"])

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._note(trial, "waiting", f"attempted again: {_last_error(trial)}")

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._note(trial, "failed", _last_error(trial))

    def on_step_end(self, iteration: int, trials: Any, **info: Any) -> None:
        running = [trial for trial in trials if trial.status == "RUNNING"]
        self._n_running = len(running)
        if time.monotonic() - self._looked_s > _LOOK_S:
            self._looked_s = time.monotonic()
            for trial in running:
                self._limit_failures(trial)
                trial.last_result.update(read_metrics(self.folder / str(trial)))  # for the reporter
            self.write()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune saves its callbacks for `Tuner.restore`

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False  # no trial is stopped alone

    def stop_all(self) -> bool:
        """On request, have all runs saved; return True when none is training any more."""
        if not self._asked and self.stop():
            self._asked = True
            (self.folder / SWEEP / STOP).touch()
            print("stopping: runs are saved; a second signal ends this process at once", flush=True)
        self._ended = self._asked and not self._n_running
        return self._ended

    def _limit_failures(self, trial: Any) -> None:
        """Forget failures before a new checkpoint: FailureConfig limits all of them, a study those in a row."""
        saved = newest_checkpoint(self.folder / str(trial))
        if saved > self._saved.get(str(trial), saved):
            trial.run_metadata.num_failures = 0
        self._saved[str(trial)] = saved

    def _note(self, trial: Any, state: str, message: str) -> None:
        self._news[str(trial)] = (state, message)
        print(f"{trial}: {state}{f', {message}' if message else ''}", flush=True)


class DrawSearcher(Searcher):
    """Searcher of Tune that makes a new draw when all trials of earlier ones have begun.

    Args:
        draws: The search.
        begin: Adds trials to the study; returns the jobs of those that are unfinished.
    """

    def __init__(self, draws: Draws, begin: Callable[[Sequence[Trial]], list[str]]) -> None:
        super().__init__()
        self.draws, self.begin = draws, begin
        self.jobs = begin(draws.trials())

    def suggest(self, trial_id: str) -> Any:
        while not self.jobs:
            if not self.draws.more:
                return Searcher.FINISHED
            self.jobs = self.begin(self.draws.next())
        return {"job": self.jobs.pop(0)}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        pass  # scores are read from the run folders

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).touch()  # Tune expects a file; the state is in draws.json


def connect(address: str | None, n_cpus: int | None, resources: Resources) -> int:
    """Connect to a cluster, or start Ray on this machine; return the number of trials that fit side by side.

    Raises:
        ValueError: There is no such cluster, or no trial fits on this machine.
    """
    path = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    common["runtime_env"] = {"env_vars": {"PYTHONPATH": path}}
    try:
        if address is None:
            store = 80 * 2**20  # bytes; the least that Ray takes, and results are small
            ray.init("local", num_cpus=n_cpus, include_dashboard=False, object_store_memory=store, **common)
        else:
            ray.init(address, **common)
    except (ConnectionError, ImportError, RuntimeError, ValueError) as error:
        raise ValueError(f"Ray cannot be reached at {address or 'this machine'}: {error}") from error
    has, wanted = ray.cluster_resources(), {"CPU": resources.cpus, "GPU": resources.gpus}
    room = min(int(has.get(kind, 0) / n) for kind, n in wanted.items() if n)
    if room == 0 and address is None:
        ray.shutdown()
        given, asked = (", ".join(f"{of.get(kind, 0):g} {kind}" for kind in wanted) for of in (has, wanted))
        raise ValueError(f"a trial takes {asked}; this machine has {given}")
    return max(room, 1)  # a cluster may grow


def run_study(
    study: Study,
    folder: Path,
    draws: Draws | None,
    *,
    room: int,
    stop: Callable[[], bool],
    program: Sequence[str] = PROGRAM,
) -> Watch:
    """Run those trials of a study whose run folders are not finished, on the connected Ray.

    Each call is a new experiment of Tune: `Tuner.restore` cannot add trials, and restores less than the folders have.

    Args:
        study: The study.
        folder: Its folder.
        draws: Draws of a search with Optuna.
        room: Number of trials of such a search side by side.
        stop: Returns True when the study is asked to stop.
        program: Program that trains.

    Raises:
        ValueError: Tune or the cluster failed.
        OSError: The study's folder cannot be written.
    """
    watch = Watch(study, folder, stop)

    def begin(trials: Sequence[Trial]) -> list[str]:
        watch.trials += trials
        waiting = [t for t in trials if not is_done(folder / t.name, t.words)]
        place = str(folder.absolute()), str(Path.cwd())
        jobs = [Job(t.name, *place, list(t.words), [*program, *t.arguments(folder)]) for t in waiting]
        return [json.dumps(asdict(job)) for job in jobs]

    if draws is None:
        space = {"job": tune.grid_search(begin(study.trials()))}
        search: dict[str, Any] = {}
    else:
        space = {}
        search = {"search_alg": DrawSearcher(draws, begin), "max_concurrent_trials": room, "num_samples": -1}
    tuner = tune.Tuner(
        tune.with_resources(train_run, {"cpu": study.resources.cpus, "gpu": study.resources.gpus}),
        param_space=space,
        tune_config=tune.TuneConfig(reuse_actors=True, trial_name_creator=_name, trial_dirname_creator=_name, **search),
        run_config=tune.RunConfig(
            name=SWEEP,
            storage_path=str(folder.absolute()),
            failure_config=tune.FailureConfig(max_failures=study.retries),
            stop=watch,
            callbacks=[watch],
            progress_reporter=tune.CLIReporter(
                metric_columns=["steps", "return"], parameter_columns={"": ""}, max_report_frequency=30
            ),
            verbose=1,
        ),
    )
    write_whole(folder / "study.json", json.dumps(asdict(study), indent=2, default=str) + "\n")
    try:
        tuner.fit()
    except (tune.TuneError, ConnectionError, ray.exceptions.RayError) as error:
        raise RuntimeError(f"Tune failed: {error}") from error
    finally:
        print(f"{study.name}, {len(watch.trials)} trials: {watch.write()}", flush=True)
    return watch


def _name(trial: Any) -> str:
    name: str = json.loads(trial.config["job"])["name"]
    return name


def _last_error(trial: Any) -> str:
    """Last line of the trial's last error."""
    text = Path(trial.error_file).read_text() if trial.error_file else ""
    return text.strip().rpartition("\n")[2].strip().removeprefix("RuntimeError: ")
