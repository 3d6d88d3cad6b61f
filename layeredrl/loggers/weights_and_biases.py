"""Weights & Biases: online, or offline on the disk until `wandb sync` uploads it."""

import csv
import re
import secrets
import shutil
import time
import warnings
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from layeredrl.loggers.logger import STEP_COLUMN, Logger
from layeredrl.loggers.wandb_file import n_records_on_disk

if TYPE_CHECKING:
    import wandb

# wandb.login gives up after 10 s without a network. The rest of these seconds is the time limit of wandb.init.
_ONLINE_TIMEOUT_S = 9.0
_LEAST_INIT_TIMEOUT_S = 2.0
# Long enough for the videos of a run; by default wandb waits for a lost network without limit.
_FINISH_TIMEOUT_S = 120.0
_MAX_NAME, _MAX_TAG = 128, 64  # characters


@dataclass(frozen=True)
class WandbSettings:
    """Settings of logging to Weights & Biases."""

    mode: Literal["off", "offline", "online"] = "off"
    """Offline writes to the run's folder only. Online without a key or a network continues offline."""

    project: str = "layeredrl"
    """Project that the run belongs to."""

    group: str | None = None
    """Group of runs that belong together, for instance the seeds of one setting."""

    job_type: str | None = None
    """Kind of the run within its group, for instance "train"."""

    name: str | None = None
    """Name of the run; W&B invents one by default."""

    tags: tuple[str, ...] = ()
    """Labels of the run."""

    def __post_init__(self) -> None:
        if self.mode == "off":
            return
        # The rules of wandb, which checks them only when a run begins.
        bad = sorted(set("/\\#?%:") & set(self.project))
        if bad or not 0 < len(self.project) <= _MAX_NAME:
            found = f", with {' '.join(bad)}" if bad else ""
            raise ValueError(
                f"wandb_project is {self.project!r}{found}, expected 1 to {_MAX_NAME} characters, none of / \\ # ? % :"
            )
        for name in ("group", "job_type", "name"):
            value = getattr(self, name)
            if value is not None and len(value) > _MAX_NAME:
                raise ValueError(f"wandb_{name} is {value!r}, expected at most {_MAX_NAME} characters")
        for tag in self.tags:
            if not 0 < len(tag) <= _MAX_TAG:
                raise ValueError(f"wandb_tags has {tag!r}, expected 1 to {_MAX_TAG} characters each")


class WandbLogger(Logger):
    """Metrics over `n_total_env_steps`, figures, videos, models and the configuration in a W&B run of its own.

    It prints nothing, never asks for a key, and never keeps a run from starting: if it cannot log online within
    seconds, it logs offline, with one `RuntimeWarning`.

    The number of a record is W&B's internal step. A resumed run begins where the log really ends: offline at the last
    record on the disk, online at the last one that the server has. Records that it repeats are left out. Records that
    are missing, because wandb writes only every 15 seconds or so, are logged again from `metrics` and the pictures.

    Args:
        settings: Settings with any mode but "off".
        config: Nested, JSON-able settings of the run.
        directory: Folder in which W&B creates its folder `wandb`.
        metrics: File of a `CsvLogger` that logs the same metrics; without it, missing records cannot be logged again.
    """

    def __init__(
        self, settings: WandbSettings, config: Mapping[str, object], directory: Path, metrics: Path | None = None
    ) -> None:
        if settings.mode == "off":
            raise ValueError('mode should be "offline" or "online" for a WandbLogger, but is "off"')
        self._settings = settings
        self._config = dict(config)
        self._directory = directory
        self._metrics = metrics
        self._run_id = _new_run_id()
        self._n_records = 0
        self._n_kept = 0  # records that earlier processes have left in the log
        self._n_steps = -1  # environment steps of the last record of metrics
        self._pictures: list[tuple[int, str, str, int]] = []  # number of the record, name, file, environment steps
        self._saved_pictures: set[tuple[str, int]] = set()  # name and environment steps
        self._run: wandb.Run | None = None
        self._closed = False

    @property
    def url(self) -> str | None:
        """Address of the run's page; None offline, before the first record, and after `close`."""
        return None if self._run is None else self._run.url

    def log(self, metrics: Mapping[str, float], n_total_env_steps: int) -> None:
        if metrics:
            self._record(metrics, n_total_env_steps)
            self._n_steps = n_total_env_steps

    def log_figure(self, name: str, path: Path, n_total_env_steps: int) -> None:
        self._picture(name, path, n_total_env_steps)

    def log_video(self, name: str, path: Path, n_total_env_steps: int) -> None:
        self._picture(name, path, n_total_env_steps)

    def log_model(self, files: Mapping[str, Path], n_total_env_steps: int) -> None:
        """Record an artifact of type "model", named after the run; its aliases are "latest" and the run's id."""
        import wandb

        run = self._opened()
        # Copies beside the record, because `wandb sync` may run after the files have changed. wandb's own copies would
        # lie in the user's home, and stay there if the run is deleted.
        folder = Path(run.dir).absolute().parent / f"model-{n_total_env_steps:012d}"
        artifact = wandb.Artifact(
            artifact_name(self._settings.name or run.id), type="model", metadata={STEP_COLUMN: n_total_env_steps}
        )
        for name, path in files.items():
            copy = folder / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
            artifact.add_file(str(copy), name=name, policy="immutable", skip_cache=True)
        run.log_artifact(artifact, aliases=["latest", run.id])

    def state_dict(self) -> dict[str, Any]:
        return {
            "run_id": self._run_id,
            "n_records": self._n_records,
            "n_steps": self._n_steps,
            "pictures": [list(picture) for picture in self._pictures],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self._run is not None:
            raise RuntimeError("a WandbLogger has to be restored before it writes anything")
        self._run_id, self._n_records = str(state["run_id"]), int(state["n_records"])
        self._n_steps = int(state.get("n_steps", -1))  # missing in older states, whose records are not logged again
        self._pictures = [(int(i), str(name), str(file), int(n)) for i, name, file, n in state.get("pictures", ())]
        self._saved_pictures = {(name, n) for _, name, _, n in self._pictures}

    def close(self) -> None:
        """Finish the run.

        Raises:
            TimeoutError: The upload takes more than 120 s. `wandb sync` can do it later.
        """
        self._closed = True
        if self._run is not None:
            run, self._run = self._run, None
            run.finish()

    def _picture(self, name: str, path: Path, n_total_env_steps: int) -> None:
        if (name, n_total_env_steps) in self._saved_pictures:
            return  # a run that was killed after its last save repeats its end
        file = path.absolute()
        folder = self._directory.absolute()  # which may be moved
        relative = file.relative_to(folder) if file.is_relative_to(folder) else file
        self._record({name: _media(file)}, n_total_env_steps)
        self._pictures.append((self._n_records - 1, name, str(relative), n_total_env_steps))

    def _record(self, values: Mapping[str, object], n_total_env_steps: int) -> None:
        run = self._opened()
        if self._n_records >= self._n_kept:
            self._write(run, self._n_records, values, n_total_env_steps)
        self._n_records += 1

    def _write(self, run: "wandb.Run", number: int, values: Mapping[str, object], n_total_env_steps: int) -> None:
        run.log({STEP_COLUMN: n_total_env_steps, **values}, step=number, commit=True)

    def _log_again(self, run: "wandb.Run") -> None:
        """Log the records up to the saved state that the log lacks."""
        pictures = {picture[0]: picture[1:] for picture in self._pictures if picture[0] >= self._n_kept}
        numbers = [i for i in range(self._n_kept, self._n_records) if i not in pictures]
        rows = iter(_last_rows(self._metrics, len(numbers), self._n_steps))
        for number in range(self._n_kept, self._n_records):
            if number in pictures:
                name, file, n_total_env_steps = pictures[number]
                path = self._directory / file
                if path.is_file():
                    self._write(run, number, {name: _media(path)}, n_total_env_steps)
            else:
                row = next(rows, None)
                if row is not None:
                    self._write(run, number, row, int(row.pop(STEP_COLUMN)))

    def _opened(self) -> "wandb.Run":
        if self._closed:
            raise RuntimeError("this WandbLogger is closed")
        if self._run is None:
            requested = self._run_id
            self._run = self._start()
            self._run_id = self._run.id  # in a W&B sweep the agent's id, not the requested one
            if self._run_id != requested:  # a new run, because the server does not answer: it has what is logged now
                self._n_kept = self._n_records
            elif self._run.offline:
                self._n_kept = n_records_on_disk(self._directory, self._run_id)
            else:
                self._n_kept = self._run.starting_step
            self._log_again(self._run)
        return self._run

    def _start(self) -> "wandb.Run":
        import wandb

        self._directory.mkdir(parents=True, exist_ok=True)  # otherwise wandb writes to a temporary folder
        wandb.setup(settings=wandb.Settings(silent=True))  # login has no such setting of its own
        run = self._start_online() if self._settings.mode == "online" else self._init("offline")
        run.define_metric(STEP_COLUMN)
        run.define_metric("*", step_metric=STEP_COLUMN)
        return run

    def _start_online(self) -> "wandb.Run":
        """Start the run online, or offline with a warning that says why."""
        import wandb

        start_s = time.monotonic()
        problem = _login_problem()
        if problem is None:
            left_s = _ONLINE_TIMEOUT_S - (time.monotonic() - start_s)
            try:
                return self._init("online", max(left_s, _LEAST_INIT_TIMEOUT_S))
            except Exception as error:  # from wandb, its service, pydantic or the network
                problem = f"{type(error).__name__}: {error}"
                # This process cannot use the id again. `wandb sync --id` merges the two runs.
                self._run_id = _new_run_id()
                wandb.setup().settings.sweep_id = None  # in a W&B sweep wandb would require the id
        warnings.warn(
            f"W&B logs offline, to {self._directory / 'wandb'}, for `wandb sync` to upload later: {problem}",
            RuntimeWarning,
            stacklevel=2,
        )
        return self._init("offline")

    def _init(self, mode: Literal["offline", "online"], timeout_s: float = _ONLINE_TIMEOUT_S) -> "wandb.Run":
        import wandb

        return wandb.init(
            mode=mode,
            project=self._settings.project,
            group=self._settings.group,
            job_type=self._settings.job_type,
            name=self._settings.name,
            tags=self._settings.tags,
            config=self._config,
            dir=self._directory,
            id=self._run_id,
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(
                silent=True,
                console="off",  # wandb's capture of the console disturbs the live display
                init_timeout=timeout_s,
                finish_timeout=_FINISH_TIMEOUT_S,
                finish_timeout_raises=True,
            ),
        )


def _media(path: Path) -> "wandb.Image | wandb.Video":
    import wandb

    return wandb.Video(str(path)) if path.suffix.lower() == ".gif" else wandb.Image(str(path))


def _last_rows(path: Path | None, n: int, n_total_env_steps: int) -> list[dict[str, float]]:
    """Return the last n rows of a `CsvLogger`'s file of at most this number of environment steps."""
    if path is None or n == 0 or not path.is_file():
        return []
    rows: deque[dict[str, str]] = deque(maxlen=n)
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if int(row[STEP_COLUMN]) > n_total_env_steps:
                break
            rows.append(row)
    return [{name: _number(cell) for name, cell in row.items() if cell} for row in rows]


def _number(cell: str) -> float:
    return int(cell) if re.fullmatch(r"-?\d+", cell) else float(cell)


def artifact_name(name: str) -> str:
    """Return a valid name of a W&B artifact: letters, digits, dashes, underscores and dots, at most 128."""
    return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII)[:128]


def _login_problem() -> str | None:
    """Log in; return the reason if that fails, otherwise None.

    It takes no time without a key, and seconds without a network, where wandb.init takes minutes.
    """
    import wandb

    try:
        if wandb.login(prompt=False, verify=True):
            return None
    except wandb.Error as error:
        return f"{type(error).__name__}: {error}"
    return "no API key is configured (`wandb login` stores one), or WANDB_MODE forbids it"


def _new_run_id() -> str:
    return secrets.token_hex(4)  # not from a seeded generator: equal seeds would make equal ids
