"""Studies: agents, environments, seeds and settings, and the trials that they consist of. Light: it loads no torch."""

import hashlib
import itertools
import json
import math
import re
import runpy
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from experiments.sweep.space import STRICT, Choice, Draw, Range, Search, Value

__all__ = ["Choice", "Range", "Resources", "Search", "Study", "Trial", "load"]

Overrides = tuple[str | int | float, ...] | dict[str, Any]
"""Settings of `experiments.train`: words of its command line, or a dict such as {"trainer.n_total_env_steps": 500}."""

Options = dict[str, tuple[str, ...]]
"""Words of a command line by the option that they set."""

_RESERVED = {
    **{"env": "environments", "seed": "seeds", "name": "name", "agent": "agents", "runs-dir": "--runs-dir"},
    "fresh": "another name for the study",
}
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*", re.ASCII)
_LONGEST = 150  # letters of a trial's name; file systems take 255, and the files of a sweep have endings


@dataclass(frozen=True)
class Resources:
    """Resources of one trial."""

    cpus: float = 1
    """Number of CPU cores."""
    gpus: float = 0
    """Share of a GPU, such as 0.25 for four trials on each; or a whole number of GPUs."""

    __pydantic_config__ = STRICT

    def __post_init__(self) -> None:
        if not (0 < self.cpus < math.inf):
            raise ValueError(f"cpus is {self.cpus}, expected a positive number")
        if not (0 <= self.gpus < 1 or (self.gpus < math.inf and self.gpus % 1 == 0)):
            raise ValueError(f"gpus is {self.gpus}, expected a share below 1 or a whole number")


@dataclass(frozen=True)
class Trial:
    """One run of a study."""

    name: str
    """Name of its folder. It depends on the trial's own settings only, not on the rest of the study."""
    agent: str
    """Name of the agent in the study."""
    environment: str
    """Environment id."""
    seed: int
    """Random seed of the run."""
    settings: dict[str, Value]
    """Values of the grid or of the search by name of the setting."""
    words: tuple[str, ...]
    """Command line of `experiments.train` without the folder."""

    def arguments(self, folder: Path) -> tuple[str, ...]:
        """Command line of `experiments.train` for a study in this folder."""
        return (*self.words, "--runs-dir", str(folder), "--name", self.name)

    def command(self, folder: Path) -> str:
        """Shell command that runs the trial, or goes on with it."""
        from experiments.run.command_line import program  # workers that only train need no command line

        return shlex.join((*program("train").split(), *self.arguments(folder)))


@dataclass(frozen=True)
class Study:
    """Every agent in every environment, with every seed and every value of the grid, or every draw of the search."""

    name: str
    """Name of the folder of its runs."""
    agents: dict[str, Overrides]
    """Settings by the agent's name in the study. The agent itself is the first word, or "agent" in a dict; by default,
    it is called as in the study."""
    environments: tuple[str, ...]
    """Environment ids as in `experiments.train --env`."""
    seeds: tuple[int, ...] = (0,)
    """Random seeds, one run for each."""
    common: Overrides = ()
    """Settings of all trials. Settings of an environment replace them, those of an agent replace both, and those of
    grid or search replace all three."""
    by_environment: dict[str, Overrides] = field(default_factory=dict)
    """Settings by environment id, such as the number of steps."""
    skip: dict[str, dict[str, str]] = field(default_factory=dict)
    """Combinations that are not trained: the reason by environment id, by the agent's name in the study."""
    grid: dict[str, tuple[Value, ...]] = field(default_factory=dict)
    """Values by name of the setting; all combinations are trained."""
    search: Search | None = None
    """Random or learned draws in place of a grid."""
    resources: Resources = field(default_factory=Resources)
    """Resources of one trial."""
    wandb: Literal["off", "offline", "online"] | None = None
    """Mode of Weights & Biases for all trials; it replaces the mode in their settings."""
    retries: int = 3
    """Number of further attempts after a crash or a lost machine, in a row without a newer checkpoint."""

    __pydantic_config__ = STRICT

    def __post_init__(self) -> None:
        for name in (self.name, *self.agents):
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name!r} is not the name of a folder: letters, digits and any of .+-_")
        values = {"agents": tuple(self.agents), "environments": self.environments, "seeds": self.seeds}
        for name, several in {**values, **{f"grid: {key}": among for key, among in self.grid.items()}}.items():
            if not several:
                raise ValueError(f"{name} is empty")
            if len(set(map(str, several))) < len(several):
                raise ValueError(f"{name} has a value twice: {', '.join(map(str, several))}")
        for name, keys, known in (
            ("by_environment", self.by_environment, self.environments),
            ("skip", self.skip, self.agents),
            *((f"skip: {agent}", envs, self.environments) for agent, envs in self.skip.items()),
        ):
            for key in keys:
                if key not in known:
                    raise ValueError(f"{name} names {key!r}, expected one of {', '.join(known)}")
        if self.grid and self.search is not None:
            raise ValueError("a study has a grid or a search, not both")
        if self.retries < 0:
            raise ValueError(f"retries is {self.retries}, expected at least 0")

    @property
    def learns(self) -> bool:
        """True if later draws depend on the results of earlier ones."""
        return self.search is not None and self.search.method != "random"

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Agents and environments that are trained together."""
        return [(name, e) for e in self.environments for name in self.agents if e not in self.skip.get(name, {})]

    def trials(self, draws: Sequence[Draw] = ()) -> list[Trial]:
        """All trials in the order in which they begin.

        Args:
            draws: Draws made so far, for a search that learns; such a study has no other trials.

        Raises:
            ValueError: Settings cannot be written on a command line, or two trials would have the same name.
        """
        common, found = _options("common", self.common), dict[str, Trial]()
        places = {env: _options(f"by_environment: {env}", own) for env, own in self.by_environment.items()}
        agents = {name: _agent(name, overrides) for name, overrides in self.agents.items()}
        for name, env, label, settings, seed in self._combinations(draws):
            agent, own = agents[name]
            chosen = _options("grid" if self.grid else "search", settings)
            fixed = {"env": ("--env", env), "seed": ("--seed", str(seed))}
            options = self._with_wandb({**fixed, **common, **places.get(env, {}), **own, **chosen})
            words = (agent, *itertools.chain(*options.values()))
            trial = Trial(_folder_name(name, env, label, f"seed{seed}"), name, env, seed, settings, words)
            if trial.name in found:
                raise ValueError(f"two trials would be called {trial.name}; give the agents other names")
            found[trial.name] = trial
        return list(found.values())

    def _with_wandb(self, options: Options) -> Options:
        """Options with those of W&B: trials form a group with the study's name, unless their settings name another."""
        if self.wandb is not None:
            options = {**options, "wandb": ("--wandb", self.wandb)}
        if options.get("wandb", ("off",))[-1].rpartition("=")[2] == "off":
            return options
        return {"wandb-group": ("--wandb-group", self.name), "wandb-job-type": ("--wandb-job-type", "trial"), **options}

    def _combinations(self, draws: Sequence[Draw]) -> Iterator[tuple[str, str, str, dict[str, Value], int]]:
        """Agent, environment, label and settings of the variant, and seed of each trial."""
        if self.learns:
            for d, seed in itertools.product(draws, self.seeds):
                yield d.agent, d.environment, f"draw{d.number:03d}", d.settings, seed
            return
        # Seed after seed: an unfinished study has something of everything.
        for seed, variant, (name, env) in itertools.product(self.seeds, self._variants(), self.pairs):
            yield name, env, *variant, seed

    def _variants(self) -> Iterator[tuple[str, dict[str, Value]]]:
        """Label and settings of each combination of the grid, or of each random draw."""
        if self.search is not None:
            for i in range(self.search.n_trials):
                yield f"draw{i:03d}", self.search.draw(i)
            return
        last = [key.rpartition(".")[2] for key in self.grid]
        short = {key: key if last.count(end) > 1 else end for key, end in zip(self.grid, last, strict=True)}
        for values in itertools.product(*self.grid.values()):
            settings = dict(zip(self.grid, values, strict=True))
            yield "-".join(f"{short[key]}={value}" for key, value in settings.items()), settings


def load(path: Path) -> Study:
    """Read a study from a Python file that defines `study`, or from a YAML file of a study's fields.

    Raises:
        ValueError: There is no such file, or it has no study; the message is one line.
    """
    if path.suffix not in (".py", ".yaml", ".yml"):
        raise ValueError(f"{path} is no study, expected a file that ends in .py or .yaml")
    if not path.is_file():
        raise ValueError(f"{path} is not there")
    try:
        content = _from_python(path) if path.suffix == ".py" else _from_yaml(path)
    except (Exception, SystemExit) as error:  # a user's file may raise anything
        message = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read: {type(error).__name__}: {message}") from error
    if not isinstance(content, dict):
        expected = "a Study called study" if path.suffix == ".py" else "the fields of a study"
        raise ValueError(f"{path} does not hold {expected}")
    return _validated(path, content)


def _validated(path: Path, content: Mapping[str, Any]) -> Study:
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(Study).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        # For a field of several types, pydantic's location names each type that it tried.
        where = ".".join(str(part) for part in first["loc"] if not re.search(r"[\[(]", str(part)))
        message = first["msg"].removeprefix("Value error, ").replace("a valid tuple", "a list")
        raise ValueError(f"{path} does not hold a study: {f'{where}: ' if where else ''}{message}") from error


def _from_python(path: Path) -> Any:
    study = runpy.run_path(str(path)).get("study")
    return asdict(study) if isinstance(study, Study) else None


def _from_yaml(path: Path) -> Any:
    import yaml

    return yaml.safe_load(path.read_text())


def _agent(name: str, overrides: Overrides) -> tuple[str, Options]:
    """Agent of `experiments.train` and its options, for an agent of the study."""
    if isinstance(overrides, dict):
        own = {key: value for key, value in overrides.items() if key != "agent"}
        return str(overrides.get("agent", name)), _options(f"agents: {name}", own)
    named = bool(overrides) and not str(overrides[0]).startswith("-")
    return (str(overrides[0]) if named else name), _options(f"agents: {name}", overrides[named:])


def _options(where: str, overrides: Overrides | Mapping[str, Value]) -> Options:
    """Options of overrides; of two that set the same, the later one replaces the other."""
    options: Options = {}
    if isinstance(overrides, Mapping):
        return {_option(where, key): _words(key, value) for key, value in _flat(overrides)}
    key = ""
    for word in map(str, overrides):
        if word.startswith("--"):
            key = _option(where, word.partition("=")[0])
            options[key] = (word,)
        elif not key:
            raise ValueError(f"{where} begins with {word!r}, expected an option such as --preset")
        else:
            options[key] = (*options[key], word)
    return options


def _option(where: str, key: str) -> str:
    """Name of the setting; --a.no-b, --a.b and a.b set the same."""
    head, dot, last = key.removeprefix("--").replace("_", "-").rpartition(".")
    option = f"{head}{dot}{last.removeprefix('no-')}"
    if option in _RESERVED:
        raise ValueError(f"{where} sets {option}, which a study sets in another way: {_RESERVED[option]}")
    if not option:
        raise ValueError(f"{where} has an option without a name")
    return option


def _flat(overrides: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in overrides.items():
        if isinstance(value, Mapping) and key.removeprefix("--").replace("-", "_") == "env_kwargs":
            yield "env-kwargs", json.dumps(value)
        elif isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}".removeprefix("--").replace("_", "-"), value


def _words(key: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, bool):
        head, dot, last = key.rpartition(".")
        return (f"--{key}" if value else f"--{head}{dot}no-{last}",)
    return (f"--{key}", *map(str, value if isinstance(value, list | tuple) else [value]))


def _folder_name(*parts: str) -> str:
    name = re.sub(r"[^\w.+=-]", "-", "-".join(filter(None, parts)), flags=re.ASCII)
    if len(name) <= _LONGEST:
        return name
    return f"{name[: _LONGEST - 9]}-{hashlib.sha1('-'.join(parts).encode()).hexdigest()[:8]}"
