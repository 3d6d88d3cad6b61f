"""Studies: which agents train where, how often and with which settings; and the trials that they consist of.

Light on purpose: the driver of a study loads neither torch nor what the agents need.
"""

import hashlib
import itertools
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
    """What one trial occupies of a machine."""

    cpus: float = 1
    """CPU cores."""
    gpus: float = 0
    """Share of a GPU, 0.25 for four trials on each; or a whole number of them."""

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
    """That of its folder. It depends on the trial's own settings alone, not on what else is in the study."""
    agent: str
    """As the study calls it."""
    environment: str
    """In which it trains."""
    seed: int
    """Of everything random."""
    settings: dict[str, Value]
    """What the grid or the search has chosen."""
    words: tuple[str, ...]
    """Command line for `experiments.train`, but for the folder."""

    def arguments(self, folder: Path) -> tuple[str, ...]:
        """The whole command line for `experiments.train`.

        Args:
            folder: Of the study.
        """
        return (*self.words, "--runs-dir", str(folder), "--name", self.name)

    def command(self, folder: Path) -> str:
        """What a person types to make the trial, or to go on with it."""
        return shlex.join(("python", "-m", "experiments.train", *self.arguments(folder)))


@dataclass(frozen=True)
class Study:
    """Every agent in every environment, with every seed and every value of the grid, or every draw of the search."""

    name: str
    """That of the folder of its runs."""
    agents: dict[str, Overrides]
    """Settings by the name that the study gives an agent. Which agent that is comes first among the words, or in a
    dict as "agent"; otherwise its name says it."""
    environments: tuple[str, ...]
    """Ids as `experiments.train --env` takes them."""
    seeds: tuple[int, ...] = (0,)
    """One run for each."""
    common: Overrides = ()
    """Settings of all trials; those of an agent go before them, and those of grid and search before both."""
    grid: dict[str, tuple[Value, ...]] = field(default_factory=dict)
    """Values by the name of a setting; all combinations are tried."""
    search: Search | None = None
    """Settings that are drawn, in place of a grid."""
    resources: Resources = field(default_factory=Resources)
    """Of one trial."""
    wandb: Literal["off", "offline", "online"] | None = None
    """Where all trials log to Weights & Biases, in place of what their settings say."""
    retries: int = 3
    """How often in a row a trial is tried again that crashed, or whose machine was lost, and got no further."""

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
        if self.grid and self.search is not None:
            raise ValueError("a study has a grid or a search, not both")
        if self.retries < 0:
            raise ValueError(f"retries is {self.retries}, expected at least 0")

    @property
    def learns(self) -> bool:
        """Whether what is tried depends on what earlier trials have brought."""
        return self.search is not None and self.search.method != "random"

    def trials(self, draws: Sequence[Draw] = ()) -> list[Trial]:
        """All trials, in the order in which they are begun.

        Args:
            draws: Of a search that learns, those so far; it has no others.

        Raises:
            ValueError: Settings cannot be words of a command line, or two trials would have the same name.
        """
        common, found = _options("common", self.common), dict[str, Trial]()
        agents = {name: _agent(name, overrides) for name, overrides in self.agents.items()}
        for name, env, (label, settings), seed in self._drawn(draws) if self.learns else self._all():
            agent, own = agents[name]
            chosen = _options("grid" if self.grid else "search", settings)
            fixed = {"env": ("--env", env), "seed": ("--seed", str(seed))}
            words = (agent, *itertools.chain(*self._grouped({**fixed, **common, **own, **chosen}).values()))
            trial = Trial(_folder_name(name, env, label, f"seed{seed}"), name, env, seed, settings, words)
            if trial.name in found:
                raise ValueError(f"two trials would be called {trial.name}; give the agents other names")
            found[trial.name] = trial
        return list(found.values())

    def _grouped(self, options: Options) -> Options:
        """A trial's options; one that logs to W&B belongs to the group of the study, unless it names another."""
        if self.wandb is not None:
            options = {**options, "wandb": ("--wandb", self.wandb)}
        if options.get("wandb", ("off",))[-1].rpartition("=")[2] == "off":
            return options
        return {"wandb-group": ("--wandb-group", self.name), "wandb-job-type": ("--wandb-job-type", "trial"), **options}

    def _all(self) -> Iterator[tuple[str, str, tuple[str, dict[str, Value]], int]]:
        """Seed after seed: a study that is looked at half-way has something of everything."""
        for seed, variant, env, name in itertools.product(self.seeds, self._variants(), self.environments, self.agents):
            yield name, env, variant, seed

    def _drawn(self, draws: Sequence[Draw]) -> Iterator[tuple[str, str, tuple[str, dict[str, Value]], int]]:
        for draw, seed in itertools.product(draws, self.seeds):
            yield draw.agent, draw.environment, (f"draw{draw.number:03d}", draw.settings), seed

    def _variants(self) -> Iterator[tuple[str, dict[str, Value]]]:
        """What grid or search choose, each with a name."""
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
    """A study from a Python file that defines `study`, or from a YAML file of a study's fields.

    Raises:
        ValueError: There is no such file, or it holds no study; the message is one line.
    """
    if path.suffix not in (".py", ".yaml", ".yml"):
        raise ValueError(f"{path} is no study, expected a file that ends in .py or .yaml")
    if not path.is_file():
        raise ValueError(f"{path} is not there")
    try:
        content = _from_python(path) if path.suffix == ".py" else _from_yaml(path)
    except (Exception, SystemExit) as error:  # whatever a person's file raises
        told = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read: {type(error).__name__}: {told}") from error
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
        # Of a field that may be of several types, the place names each type that was tried.
        where = ".".join(str(part) for part in first["loc"] if not re.search(r"[\[(]", str(part)))
        told = first["msg"].removeprefix("Value error, ").replace("a valid tuple", "a list")
        raise ValueError(f"{path} does not hold a study: {f'{where}: ' if where else ''}{told}") from error


def _from_python(path: Path) -> Any:
    study = runpy.run_path(str(path)).get("study")
    return asdict(study) if isinstance(study, Study) else None


def _from_yaml(path: Path) -> Any:
    import yaml

    return yaml.safe_load(path.read_text())


def _agent(name: str, overrides: Overrides) -> tuple[str, Options]:
    """The agent that a study's name stands for, and its options."""
    if isinstance(overrides, dict):
        own = {key: value for key, value in overrides.items() if key != "agent"}
        return str(overrides.get("agent", name)), _options(f"agents: {name}", own)
    named = bool(overrides) and not str(overrides[0]).startswith("-")
    return (str(overrides[0]) if named else name), _options(f"agents: {name}", overrides[named:])


def _options(where: str, overrides: Overrides | Mapping[str, Value]) -> Options:
    """Settings as words of a command line, by option: of two that set the same, the later one replaces the other."""
    options: Options = {}
    if isinstance(overrides, Mapping):
        for key, value in _flat(overrides):
            options[_option(where, key)] = _words(key, value)
        return options
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
    """What an option sets: --a.no-b and --a.b, or a.b, set the same."""
    head, dot, last = key.removeprefix("--").replace("_", "-").rpartition(".")
    option = f"{head}{dot}{last.removeprefix('no-')}"
    if option in _RESERVED:
        raise ValueError(f"{where} sets {option}, which a study says in another way: {_RESERVED[option]}")
    if not option:
        raise ValueError(f"{where} has an option without a name")
    return option


def _flat(overrides: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in overrides.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}".removeprefix("--").replace("_", "-"), value


def _words(key: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, bool):
        head, dot, last = key.rpartition(".")
        return (f"--{key}" if value else f"--{head}{dot}no-{last}",)
    values = value if isinstance(value, list | tuple) else [value]
    return (f"--{key}", *map(str, values))


def _folder_name(*parts: str) -> str:
    name = re.sub(r"[^\w.+=-]", "-", "-".join(filter(None, parts)), flags=re.ASCII)
    if len(name) <= _LONGEST:
        return name
    return f"{name[: _LONGEST - 9]}-{hashlib.sha1('-'.join(parts).encode()).hexdigest()[:8]}"
