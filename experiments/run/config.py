"""The settings of a run, its presets, its command line, and its config.json."""

import dataclasses
import difflib
import importlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar, cast

import tyro
from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

from agents.recipe import Choice, Recipe, with_choices
from experiments.run.chosen import facts_of, located
from experiments.run.command_line import command_line, program
from experiments.run.env_kwargs import EnvKwargs, json_or_text
from experiments.run.flags import did_you_mean
from experiments.run.short_help import short_help
from experiments.run.wandb_sweep import SweepTrial, words_of_sweep
from layeredrl.checks import require_count
from layeredrl.environments import EnvConfig, TaskFacts, Vectorization
from layeredrl.loggers import WandbSettings
from layeredrl.trainer import TrainerConfig

AGENTS = {
    "pets": "agents.pets:PETS",
    "dads": "agents.dads:DADSAgent",
    "diayn": "agents.diayn:DIAYNAgent",
    "goals": "agents.goals:Goals",
    "loop": "agents.loop:LOOP",
    "mbpo": "agents.mbpo:MBPO",
    "random": "agents.random:Random",
    "sac": "agents.sac:SAC",
    "splates": "agents.splates:SPlaTESAgent",
    "splates-goals": "agents.splates_goals:SPlaTESOverGoalsAgent",
    "tdmpc2": "agents.tdmpc2:TDMPC2",
}
"""Classes of the agents by their short names."""


AUTO = "auto"
"""Preset whose settings are chosen for the task."""

_TRAINER = "trainer."
SOME_FACTS = TaskFacts(state_dim=1, action_dim=1, discrete=False, reward_known=False, termination_known=False)
"""Facts of no task in particular: help names the settings that are chosen, which depend on it."""

MAX_ENVS, MAX_THREADS = 2**20, 1024
"""Largest numbers of environments and threads: more than any machine runs, and few enough to be counted."""

A = TypeVar("A")


@dataclass(frozen=True)
class RunConfig(Generic[A]):
    """Train an agent in an environment."""

    agent: tyro.conf.Positional[str] = "pets"
    """Agent: pets, mbpo, loop, tdmpc2, sac, splates, splates-goals, dads, diayn, goals, random, or your own as
    package.module:Class."""
    preset: str = "demo"
    """Defaults of all other settings: auto (chosen for the task; of pets, loop, mbpo, tdmpc2 and sac the default), demo
    (a first impression), debug (a check that takes seconds), paper, or a preset of the agent's own, such as
    cartpole-fast of pets."""
    env: str = "ContinuousCartPole-v0"
    """Environment: any id registered with gymnasium; package.module:Id imports the package first. A preset that is made
    for a task has that task's environment as its default."""
    env_kwargs: EnvKwargs = field(default_factory=dict)
    """Arguments of the environment as KEY=VALUE ..., or as one JSON object; values are JSON, or else text."""
    wrappers: tuple[str, ...] = ()
    """Wrappers around each instance of the environment as package.module:Class, the innermost first."""
    action_repeat: int = 1
    """Number of frames for which each action is repeated; the agent's environment step is a decision, and lasts as
    many frames. DeepMind Control's convention is 2."""
    seed: int = 0
    """Random seed of networks, environments and exploration."""
    n_envs: int = 1
    """Number of instances of the environment that run side by side."""
    vectorization: Vectorization = "sync"
    """How instances run: sync (one after the other), async (each in its own process), or native (the environment's own
    vectorization)."""
    env_device: str | None = None
    """Device on which native environments live, of those that can: cpu, cuda, cuda:1; by default they are in numpy."""
    on_env_fault: Literal["stop", "restart"] = "stop"
    """Reaction to an environment that raises, hangs, dies or returns no valid observation."""
    env_timeout: float = 60.0
    """Time limit for the answer of an environment in its own process, in seconds."""
    max_env_faults: int = 100
    """Number of faults after which a run stops in any case."""
    name: str | None = None
    """Name of the run's folder; AGENT-ENVIRONMENT-SEED by default."""
    runs_dir: Path = Path("runs")
    """Folder that holds the folders of runs."""
    fresh: bool = False
    """Replace the run of the same name, if there is one."""
    device: str = "cpu"
    """Device of the agent: cpu, cuda, cuda:1."""
    threads: int = 1
    """Number of threads of torch on the CPU; small networks are fastest with one."""
    tensorboard: bool = True
    """Write a TensorBoard log."""
    pictures: bool = True
    """Draw the learning curve, the model's predictions and a video of the policy at the end of training; skills, and
    plans in mazes, during training."""
    wandb: Literal["off", "offline", "online"] = "off"
    """Logging to Weights & Biases; without a key or a network, online becomes offline."""
    wandb_project: str = "layeredrl"
    """W&B project of the run."""
    wandb_group: str | None = None
    """W&B group of the run, for instance the seeds of one setting."""
    wandb_job_type: str = "train"
    """W&B job type: the kind of the run within its group."""
    wandb_name: str | None = None
    """W&B name of the run; the name of its folder by default."""
    wandb_tags: tuple[str, ...] = ()
    """W&B tags of the run."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """Length of the training, and intervals of evaluations, checkpoints and pictures."""
    settings: Annotated[A, tyro.conf.arg(name="")] = field(kw_only=True)
    """Settings of the agent."""

    def __post_init__(self) -> None:
        for name, most in (("n_envs", MAX_ENVS), ("threads", MAX_THREADS)):
            value = getattr(self, name)
            if not 1 <= value <= most:
                raise ValueError(f"{name} is {value}, expected at {'least 1' if value < 1 else f'most {most}'}")
        if not 0 < self.env_timeout < math.inf:
            raise ValueError(f"env_timeout is {self.env_timeout}, expected a positive number of seconds")
        require_count("max_env_faults", self.max_env_faults, 0)
        if self.vectorization == "native" and self.on_env_fault != "stop":
            raise ValueError(
                f"on_env_fault is {self.on_env_fault!r} with native vectorization, expected 'stop': "
                "environments that step all at once cannot be restarted one by one"
            )
        environment = self.environment  # checks itself
        if self.vectorization == "native" and environment.is_changed:
            raise ValueError(
                "vectorization is 'native' with --wrappers or --action-repeat, expected sync or async: these change "
                "single environments, and native ones step all at once"
            )
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}, expected a number in [0, 2^63)")
        for name in ("device", "env_device"):
            value = getattr(self, name)
            if value is not None and not re.fullmatch(r"cpu|cuda(:\d+)?", value):
                raise ValueError(f"{name} is {value!r}, expected cpu, cuda or cuda:N")
        if self.env_device is not None and self.vectorization != "native":
            raise ValueError(
                f"env_device is {self.env_device!r} with vectorization {self.vectorization}, expected native"
            )
        if self.name is not None and (Path(self.name).name != self.name or self.name in ("", "..")):
            raise ValueError(f"name is {self.name!r}, expected the name of a folder, without slashes")
        _ = self.wandb_settings  # checks itself

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        short = self.agent.rpartition(":")[2].lower()
        return self.runs_dir / (self.name or f"{short}-{self.env.replace('/', '-').replace(':', '-')}-{self.seed}")

    @property
    def environment(self) -> EnvConfig:
        """Recipe of the environment, from which all of its instances are made."""
        return EnvConfig(self.env, self.env_kwargs, self.action_repeat, self.wrappers)

    @property
    def wandb_settings(self) -> WandbSettings:
        """Settings of the W&B logger."""
        name = self.wandb_name or self.folder.name[:128]  # the most that W&B takes
        return WandbSettings(
            self.wandb, self.wandb_project, self.wandb_group, self.wandb_job_type, name, self.wandb_tags
        )


TRAINER_PRESETS = {
    "demo": TrainerConfig(n_total_env_steps=1000),
    "debug": TrainerConfig(n_total_env_steps=60, checkpoint_every=30),
    "paper": TrainerConfig(n_total_env_steps=10_200),  # one random and fifty planned episodes of 200
}


def agent_class(name: str) -> type[Any]:
    """Return the recipe of a name in `AGENTS`, or of package.module:Class.

    Raises:
        ValueError: The agent does not exist.
    """
    path = AGENTS.get(name, name)
    module, _, attribute = path.partition(":")
    if not attribute:
        hint = did_you_mean(name, AGENTS, cutoff=0.4)
        raise ValueError(f"unknown agent {name!r}{hint} (known: {', '.join(AGENTS)}, or package.module:Class)")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError, TypeError) as error:  # the last two: not the name of a module
        raise ValueError(f"unknown agent {name!r}: {error}") from error
    if not dataclasses.is_dataclass(found) or not callable(getattr(found, "build", None)):
        raise ValueError(f"agent {name!r} is not a dataclass with a method build(task, device, *, seed)")
    return cast(type[Any], found)


def first_line(cls: type[Any]) -> str:
    """Return the first line of a class's docstring."""
    return (cls.__doc__ or "").partition("\n")[0]


def preset_names(cls: type[Any]) -> list[str]:
    """Names of the presets of an agent's class, the default one first."""
    chooses = issubclass(cls, Recipe) and bool(cls.suited(SOME_FACTS))
    return [*dict.fromkeys([*((AUTO,) if chooses else ()), *TRAINER_PRESETS, *getattr(cls, "presets", {})])]


def parse(
    args: Sequence[str], report: Callable[[RunConfig[Any], TaskFacts, Sequence[Choice]], None] | None = None
) -> RunConfig[Any]:
    """Read settings from a command line: an agent, a preset, and settings that differ from the preset.

    Args:
        args: Words of the command line.
        report: Called with the settings, the facts of the task, and the settings chosen for it, with the preset auto.

    Raises:
        ValueError: The command line cannot be parsed, or a setting is invalid.
        SystemExit: The command line asks for help.
    """
    args = _agent_first(list(args))
    agent = args[0] if args and not args[0].startswith("-") else "pets"
    cls = agent_class(agent)
    presets, trainers = getattr(cls, "presets", {}), TRAINER_PRESETS | getattr(cls, "trainers", {})
    preset = _preset(args, preset_names(cls))
    environment = getattr(cls, "environment", RunConfig.env)
    default = RunConfig(
        agent=agent,
        preset=preset,
        env=getattr(cls, "environments", {}).get(preset, environment),
        trainer=trainers.get(preset, TrainerConfig()),
        settings=cls(**presets.get(preset, {})),
    )
    facts: TaskFacts | None = None
    choices: Sequence[Choice] = ()
    if preset == AUTO and not {"-h", "--help", "--help-all"} & set(args):
        facts = facts_of(located(default, words_of_sweep(args, default)))
        choices = cls.suited(facts)
        default = suited(default, choices)
    config = _parsed(cls, args, default)
    if facts is not None and report is not None:
        report(config, facts, choices)
    if config.agent != agent:
        raise ValueError(f"the agent {config.agent!r} has to come first, or as --agent {config.agent}")
    trial = SweepTrial.from_environment()
    if trial is None:
        return config
    trial.check(to_dict(config))
    return dataclasses.replace(config, name=config.name or f"{config.folder.name}-{trial.run_id}")


def suited(default: RunConfig[Any], choices: Sequence[Choice]) -> RunConfig[Any]:
    """Return settings with those replaced that were chosen for a task."""
    trainer = [x._replace(name=x.name.removeprefix(_TRAINER)) for x in choices if x.name.startswith(_TRAINER)]
    settings = [x for x in choices if not x.name.startswith(_TRAINER)]
    return dataclasses.replace(
        default,
        trainer=with_choices(default.trainer, trainer),
        settings=with_choices(default.settings, settings),
    )


def _parsed(cls: type[Any], args: Sequence[str], default: RunConfig[Any]) -> RunConfig[Any]:
    run_config: Any = RunConfig
    words = words_of_sweep(args, default)
    prog, presets = program("train"), ", ".join(preset_names(cls))
    shorten = partial(
        short_help,
        usage=f"{prog} {default.agent}",
        about=f"Train an agent. {default.agent}: {first_line(cls)} Agents: {', '.join(AGENTS)}, or your own as "
        "package.module:Class.",
        texts={
            "preset": f"Defaults of all other settings: {presets.replace(AUTO, f'{AUTO} (chosen for the task)', 1)}."
        },
        chosen=[x.name.replace("_", "-") for x in cls.suited(SOME_FACTS)] if default.preset == AUTO else [],
    )
    config: RunConfig[Any] = command_line(run_config[cls], words, prog=prog, default=default, shorten=shorten)
    return config


def to_json(config: RunConfig[Any]) -> str:
    """Return a run's settings as JSON."""
    return json.dumps(to_dict(config), indent=2) + "\n"


def to_dict(config: RunConfig[Any]) -> dict[str, Any]:
    """Return a run's settings as a nested dict of plain values."""
    values: dict[str, Any] = _adapter(config.agent).dump_python(config, mode="json")
    return values | {"env_kwargs": dict(config.env_kwargs)}  # in which pydantic would replace infinity by null


def from_json(path: Path, changes: Mapping[str, str] | None = None) -> RunConfig[Any]:
    """Read settings from a config.json.

    Args:
        path: The file.
        changes: The agent's settings that are to be others, by names such as `planner.icem.horizon`, as text.

    Raises:
        ValueError: The file does not exist, or does not hold the settings of a run, or a change fits none.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    try:
        if changes:
            text = json.dumps(_changed(json.loads(text), changes)).encode()
        agent = TypeAdapter(_AgentName).validate_json(text).agent
        config: RunConfig[Any] = _adapter(agent).validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{path} does not hold the settings of a run: {where or 'file'}: {first['msg']}") from error
    _require_known(path, json.loads(text), to_dict(config))
    return config


def _changed(found: dict[str, Any], changes: Mapping[str, str]) -> dict[str, Any]:
    """Settings of a config.json, some of the agent's replaced."""
    for name, text in changes.items():
        place, (*path, last) = found["settings"], name.split(".")
        for part in path:
            place = place.get(part)
            if not isinstance(place, dict):
                break
        if not isinstance(place, dict) or last not in place:
            raise ValueError(f"{name} is no setting of {found['agent']}")
        place[last] = json_or_text(text)
    return found


def _require_known(path: Path, found: Mapping[str, Any], known: Mapping[str, Any], prefix: str = "") -> None:
    """Raise unless all keys of nested settings are known."""
    for key, value in found.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {prefix}{near[0]}?" if near else ""
            raise ValueError(f"{path} holds other settings than this agent's: {prefix}{key} is unknown{hint}")
        if isinstance(value, Mapping) and isinstance(known[key], Mapping):
            _require_known(path, value, known[key], f"{prefix}{key}.")


@dataclass(frozen=True)
class _AgentName:
    agent: str


def _adapter(agent: str) -> TypeAdapter[Any]:
    try:
        return _adapter_of(agent_class(agent))
    except PydanticSchemaGenerationError as error:
        raise ValueError(f"agent {agent!r} has a setting that config.json cannot hold: {error.message}") from error


@cache  # pydantic takes tens of milliseconds to make one, and a command needs it several times
def _adapter_of(cls: type[Any]) -> TypeAdapter[Any]:
    run_config: Any = RunConfig
    return TypeAdapter(run_config[cls])


def _agent_first(args: list[str]) -> list[str]:
    """Move --agent X, which may be anywhere, to the front as the positional argument."""
    for i, arg in enumerate(args):
        if arg == "--agent" and i + 1 < len(args):
            return [args[i + 1], *args[:i], *args[i + 2 :]]
        if arg.startswith("--agent="):
            return [arg.partition("=")[2], *args[:i], *args[i + 1 :]]
    return args


def _preset(args: Sequence[str], known: Sequence[str]) -> str:
    preset = known[0]
    for i, arg in enumerate(args):
        if arg == "--preset" and i + 1 < len(args):
            preset = args[i + 1]
        if arg.startswith("--preset="):
            preset = arg.partition("=")[2]
    if preset not in known:
        raise ValueError(f"unknown preset {preset!r}, expected one of {', '.join(known)}{did_you_mean(preset, known)}")
    return preset
