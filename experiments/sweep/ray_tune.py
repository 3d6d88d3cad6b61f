"""Studies on Ray Tune: a trial of Tune trains one run folder. Needs the extra `ray`."""

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # trials that ask for no GPU see none
    "RAY_AIR_NEW_OUTPUT": "0",  # otherwise Tune ignores our reporter
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the runs have their own logs
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune kills its actors 15 s after Ctrl-C, too soon for saving; see `Stop`
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # `Table` prints a line
}
for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402  reads the environment
from ray import tune  # noqa: E402
from ray.tune.error import TuneError  # noqa: E402
from ray.tune.search import Searcher  # noqa: E402

from experiments.run.signals import StopRequest  # noqa: E402
from experiments.sweep.folder import (  # noqa: E402
    STOP,
    SWEEP,
    is_done,
    newest_checkpoint,
    read_metrics,
    write_tables,
)
from experiments.sweep.search import Draws  # noqa: E402
from experiments.sweep.study import Resources, Study, Trial  # noqa: E402
from experiments.sweep.training import Job, Training  # noqa: E402

PROGRAM = ("python", "-m", "experiments.train")
"""Program that trains: takes `Trial.arguments`, has the exit codes of `experiments.train`, and leaves summary.json."""

ROOT = Path(__file__).parents[2]
_REPORT_S = 5.0  # between two results of a trial
_WRITE_S = 20.0  # between two versions of study.json and trials.csv


class Run(tune.Trainable):  # type: ignore[misc]
    """Trainable of Tune that trains one run folder, or goes on with it; Tune's own checkpoints are not used."""

    def setup(self, config: dict[str, Any]) -> None:
        """Begin a training."""
        self.training = Training(Job(**json.loads(config["job"])))
        self.reported = False

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin another training in the same worker."""
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Wait for news, and report how far the run is.

        Raises:
            RuntimeError: It crashed; Tune decides whether there is another attempt.
        """
        training, run = self.training, self.training.job.run
        training.join(_REPORT_S)
        ended = not training.is_alive()
        if ended and training.outcome == "crashed" and self.reported:
            raise RuntimeError(training.message)
        self.reported = ended  # a crash is raised after the last result, which says how far the run got
        return {
            **read_metrics(run),
            "saved": newest_checkpoint(run),
            "state": training.outcome if ended else "running",
            "message": training.message if ended else "",
            "done": ended and training.outcome != "crashed",
        }

    def cleanup(self) -> None:
        """Have the run saved; Tune calls this for a training that it ends."""
        self.training.stop()
        self.training.join()


class Table(tune.Callback):
    """Table of all trials of a study: prints a line for each event, and writes study.json and trials.csv.

    Args:
        study: The study.
        folder: Its folder.
        trials: Trials known so far.
    """

    def __init__(self, study: Study, folder: Path, trials: Sequence[Trial]) -> None:
        self.study, self.folder = study, folder
        self.rows: dict[str, dict[str, Any]] = {}
        self.n_running, self._written_s = 0, 0.0
        for trial in trials:
            self.add(trial)

    def add(self, trial: Trial) -> None:
        """Add a trial, with the results of its run folder if there are some."""
        run = self.folder / trial.name
        self.rows[trial.name] = {
            "trial": trial.name,
            "agent": trial.agent,
            "environment": trial.environment,
            "seed": trial.seed,
            **trial.settings,
            "state": "done" if is_done(run, trial.words) else "waiting",
            "tries": 0,
            **dict.fromkeys(("steps", "seconds", "steps_per_second", "return", "evaluation"), None),
            "message": "",
            "command": trial.command(self.folder),
        }
        self._update(trial.name, read_metrics(run))

    @property
    def done(self) -> bool:
        """True if all trials are finished."""
        return all(row["state"] == "done" for row in self.rows.values())

    def summary(self) -> str:
        """Number of trials by state."""
        counts = Counter(row["state"] for row in self.rows.values())
        numbers = ", ".join(f"{counts[state]} {state}" for state in sorted(counts))
        return f"{self.study.name}, {len(self.rows)} trials: {numbers}"

    def write(self) -> None:
        """Write study.json and trials.csv; a full disk does not stop the trials."""
        self._written_s = time.monotonic()
        try:
            write_tables(self.folder, asdict(self.study), list(self.rows.values()))
        except OSError as error:
            print(f"study.json and trials.csv cannot be written: {error}", flush=True)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Count an attempt."""
        row = self.rows[str(trial)]
        row["state"], row["tries"] = "running", row["tries"] + 1

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Take over a result. Tune limits all failures of a trial; we limit those in a row without a new checkpoint."""
        last = trial.last_result or {}
        if result["saved"] > last.get("saved", newest_checkpoint(self.folder / str(trial)) if not last else -1):
            trial.run_metadata.num_failures = 0
        self._update(str(trial), result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Print how a trial ended."""
        row = self.rows[str(trial)]
        self._say(row, f"{row['steps'] or 0} steps, return {row['return']}" if row["state"] == "done" else row["message"])

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Print that a trial is attempted again."""
        row = self.rows[str(trial)]
        lost = row["state"] == "running"
        row["state"], row["message"] = "waiting", "its worker was lost" if lost else row["message"]
        self._say(row, f"attempted again: {row['message']}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Print that a trial is given up."""
        row = self.rows[str(trial)]
        row["state"], row["message"] = "failed", row["message"] or "its worker was lost"
        self._say(row, f"given up: {row['message']}")

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Write the tables now and then."""
        self.n_running = sum(trial.status == "RUNNING" for trial in trials)
        if time.monotonic() - self._written_s > _WRITE_S:
            self.write()

    def _update(self, name: str, found: dict[str, Any]) -> None:
        row = self.rows[name]
        row.update({key: found[key] for key in row.keys() & found.keys()})
        if row["steps"] and row["seconds"]:
            row["steps_per_second"] = row["steps"] / row["seconds"]

    def _say(self, row: dict[str, Any], line: str) -> None:
        print(f"{row['trial']}: {row['state']}, {line}", flush=True)


class Stop(tune.Stopper):
    """Ends a study on request: first all trials save and end, then Tune may stop.

    Args:
        request: Becomes true when the study is asked to stop.
        table: Knows how many trials are running.
    """

    def __init__(self, request: StopRequest, table: Table) -> None:
        self.request, self.table, self._asked = request, table, False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Stop no trial alone."""
        return False

    def stop_all(self) -> bool:
        """Ask the trainings to stop, and return True when none is running."""
        if self.request and not self._asked:
            self._asked = True
            (self.table.folder / SWEEP / STOP).touch()
            print("stopping: the trainings save and end; a second signal ends this process at once", flush=True)
        return self._asked and not self.table.n_running


class DrawSearcher(Searcher):  # type: ignore[misc]
    """Searcher of Tune that makes a new draw when all trials of the earlier ones have begun.

    Args:
        draws: The search.
        jobs: Converts trials to configurations of Tune; removes finished ones.
        table: Table that new trials are added to.
    """

    def __init__(self, draws: Draws, jobs: Any, table: Table) -> None:
        super().__init__()
        self.draws, self.jobs, self.table, self._error = draws, jobs, table, ""
        self.waiting = list(jobs(draws.study.trials(draws.made)))

    def suggest(self, trial_id: str) -> Any:
        """Configuration of the next trial."""
        while not self.waiting:
            if len(self.draws.made) >= self.draws.n_total:
                return Searcher.FINISHED
            try:
                trials = self.draws.next()
            except OSError as error:  # Tune asks again; a draw that is not saved could not go on after a stop
                if str(error) != self._error:
                    print(f"draws.json cannot be written: {error}", flush=True)
                self._error = str(error)
                return None
            for trial in trials:
                self.table.add(trial)
            self.waiting = list(self.jobs(trials))
        return {"job": self.waiting.pop(0)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing to do: scores are read from the run folders."""

    def save(self, checkpoint_path: str) -> None:
        """Write a file, as Tune expects one; draws.json has the state."""
        Path(checkpoint_path).touch()


def connect(address: str | None, n_cpus: int | None, resources: Resources) -> int:
    """Connect to a cluster, or start Ray on this machine; return how many trials fit side by side now.

    Raises:
        ValueError: There is no such cluster, or no trial fits on this machine.
    """
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address is None:
            # Only this machine may connect. 80 MiB is the least that Ray takes; results are small.
            own = {"_node_ip_address": "127.0.0.1", "include_dashboard": False, "object_store_memory": 80 * 2**20}
            ray.init("local", num_cpus=n_cpus, **own, **quiet)
        else:
            ray.init(address, **quiet)
    except (ConnectionError, ImportError, RuntimeError, ValueError) as error:
        raise ValueError(f"Ray cannot be reached at {address or 'this machine'}: {error}") from error
    wanted = {kind: n for kind, n in (("CPU", resources.cpus), ("GPU", resources.gpus)) if n}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(min(int(node.get(kind, 0) / n) for kind, n in wanted.items()) for node in nodes)
    if room == 0 and address is None:
        ray.shutdown()
        has = ", ".join(f"{nodes[0].get(kind, 0):g} {kind}" for kind in ("CPU", "GPU"))
        raise ValueError(f"a trial takes {resources.cpus:g} CPU, {resources.gpus:g} GPU; this machine has {has}")
    return max(room, 1)


def run_study(
    study: Study, folder: Path, draws: Draws | None, *, room: int, request: StopRequest, program: Sequence[str] = PROGRAM
) -> Table:
    """Run the unfinished trials of a study on a connected Ray.

    Each call makes a new experiment of Tune with those trials that their run folders show to be unfinished. `Tuner.restore`
    cannot add trials to a study, and the state that it restores is older than that of the folders.

    Args:
        study: The study.
        folder: Its folder.
        draws: Draws of a search with Optuna.
        room: Number of trials side by side in such a search.
        request: Becomes true when the study is asked to stop.
        program: Program that trains.

    Raises:
        ValueError: Tune or the cluster failed.
    """
    trials = study.trials() if draws is None else study.trials(draws.made)
    table = Table(study, folder, trials)

    def jobs(trials: Sequence[Trial]) -> list[str]:
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        shared = {"folder": str(folder.absolute()), "cwd": str(Path.cwd()), "path": path}
        return [
            json.dumps(asdict(Job(t.name, words=list(t.words), command=[*program, *t.arguments(folder)], **shared)))
            for t in trials
            if table.rows[t.name]["state"] != "done"
        ]

    waiting = jobs(trials)
    if draws is None and not waiting:
        table.write()
        return table
    name = _name_of
    config = tune.TuneConfig(
        reuse_actors=True,
        trial_name_creator=name,
        trial_dirname_creator=name,
        search_alg=None if draws is None else DrawSearcher(draws, jobs, table),
        max_concurrent_trials=None if draws is None else room,
        num_samples=1 if draws is None else -1,
    )
    resources = {"cpu": study.resources.cpus, "gpu": study.resources.gpus}
    tuner = tune.Tuner(
        tune.with_resources(Run, resources),
        param_space={"job": tune.grid_search(waiting)} if draws is None else None,
        tune_config=config,
        run_config=tune.RunConfig(
            name=SWEEP,
            storage_path=str(folder.absolute()),
            failure_config=tune.FailureConfig(max_failures=study.retries),
            stop=Stop(request, table),
            callbacks=[table],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            progress_reporter=tune.CLIReporter(
                metric_columns=["state", "steps", "return"], parameter_columns={"none": ""}, max_report_frequency=30
            ),
            verbose=1,
        ),
    )
    try:
        tuner.fit()
    except (TuneError, ConnectionError, ray.exceptions.RayError) as error:
        raise ValueError(f"Tune failed: {error}") from error
    finally:
        table.write()
    return table


def _name_of(trial: Any) -> str:
    name: str = json.loads(trial.config["job"])["name"]
    return name
