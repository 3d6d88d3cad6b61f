"""W&B sweeps, and the groups of studies on W&B."""

from pathlib import Path
from typing import Any

import pytest
import wandb
from wandb import wandb_agent

from experiments.run.config import parse
from experiments.sweep.study import Study
from tests.experiments.commands import run_train
from tests.experiments.conftest import Refusal
from tests.loggers.wandb_reader import read_offline_run

pytestmark = [
    pytest.mark.usefixtures("lonely_wandb"),
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),  # wandb does not close what it reads
]

YAML = Path(__file__).parents[3] / "experiments" / "studies" / "wandb_sweep.yaml"
QUICK = ["pets", "--preset=debug", "--no-pictures", "--no-tensorboard", "--wandb=offline"]
START = ["${env}", "${interpreter}", "-m", "experiments.train"]


class Agent:
    """The agent of wandb; it keeps the command of a run instead of starting it."""

    def __init__(self, command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._started: list[list[str]] = []

        class Process:
            def __init__(process, command: list[str], **kwargs: Any) -> None:
                self._started.append(command)

        monkeypatch.setattr(wandb_agent, "AgentProcess", Process)
        # Set by the agent itself; named here to be gone after the test.
        for name, value in {"DIR": str(Path.cwd()), "SWEEP_ID": "s1", "RUN_ID": "", "SWEEP_PARAM_PATH": ""}.items():
            monkeypatch.setenv(f"WANDB_{name}", value)
        self._agent = wandb_agent.Agent(api=None, queue=None, sweep_id="s1")
        self._agent._sweep_command = command

    def words(self, run_id: str, **parameters: Any) -> list[str]:
        """Words for experiments.train; the environment is that of the run from now on."""
        args = {name: {"value": value} for name, value in parameters.items()}
        wandb.teardown()  # each run is a process of its own, which reads its environment
        self._agent._command_run({"run_id": run_id, "args": args, "program": None})
        command = self._started[-1]
        assert command[:4] == ["/usr/bin/env", "python", "-m", "experiments.train"]
        return command[4:]


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Agent:
    return Agent([*START, *QUICK, "${args}"], monkeypatch)


def test_the_sweep_in_the_repository_makes_runs_of_its_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    from wandb.sdk.launch.sweeps.utils import load_sweep_config  # late: it takes a second

    sweep = load_sweep_config(str(YAML))
    assert sweep is not None
    agent = Agent(sweep["command"], monkeypatch)
    folders = set()
    for i, every in enumerate(sweep["parameters"]["learning.fit_every"]["values"]):
        chosen = {"learning.fit_every": every, "planner.icem.horizon": 10 + i, "seed": 2, "pictures": False}
        assert chosen.keys() == sweep["parameters"].keys()
        config = parse(agent.words(f"run{i}", **chosen))
        assert (config.settings.learning.fit_every, config.settings.planner.icem.horizon) == (every, 10 + i)
        assert (config.seed, config.pictures, config.wandb, config.trainer.eval_every) == (2, False, "online", 500)
        folders.add(config.folder.name)
    assert folders == {f"pets-ContinuousCartPole-v0-2-run{i}" for i in range(3)}


@pytest.mark.parametrize("args", ["${args}", "${args_no_boolean_flags}"])
def test_all_kinds_of_settings_are_understood(args: str, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = Agent([*START, "pets", "--wandb", "offline", args], monkeypatch)
    chosen = {"n_envs": 3, "planner.kind": "mppi", "learning.reward_learning_rate": 1e-05, "wandb_tags": ["a", "b"]}
    config = parse(agent.words("one", **chosen, fresh=True, tensorboard=True))
    assert (config.n_envs, config.settings.planner.kind, config.wandb_tags) == (3, "mppi", ("a", "b"))
    assert config.settings.learning.reward_learning_rate == 1e-05
    assert (config.fresh, config.tensorboard) == (True, True)


def test_trials_of_a_sweep_have_folders_and_ids_of_their_own(agent: Agent, capsys: pytest.CaptureFixture[str]) -> None:
    for run_id in ("first", "second"):
        run_train(*agent.words(run_id, seed=1))
    for run_id in ("first", "second"):
        run = read_offline_run(Path(f"runs/pets-ContinuousCartPole-v0-1-{run_id}"))
        assert (run.run_id, run.name) == (run_id, f"pets-ContinuousCartPole-v0-1-{run_id}")
        assert run.config["seed"] == 1
    capsys.readouterr()
    run_train(*agent.words("first", seed=1))  # as an agent resumes it
    assert "is finished" in capsys.readouterr().out


def test_a_run_id_without_a_sweep_is_used_and_a_folder_belongs_to_one(
    monkeypatch: pytest.MonkeyPatch, refusal: Refusal
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    run_train("random", *QUICK[1:], "--name", "r")
    assert read_offline_run(Path("runs/r")).run_id == "mine"
    monkeypatch.setenv("WANDB_RUN_ID", "other")
    line = refusal(run_train, "random", *QUICK[1:], "--name", "r")
    assert "runs/r logs to the W&B run mine, but WANDB_RUN_ID is other" in line


def test_a_run_has_the_settings_of_its_sweep(monkeypatch: pytest.MonkeyPatch, refusal: Refusal) -> None:
    no_flags = Agent([*START, *QUICK[:2], "--wandb", "offline", "${args_no_boolean_flags}"], monkeypatch)
    words = no_flags.words("one", pictures=False)  # which the agent leaves out
    assert "the W&B sweep sets pictures to False, but this run has True" in refusal(run_train, *words)
    no_args = Agent([*START, *QUICK], monkeypatch)
    words = no_args.words("two", **{"learning.fit_every": 7})
    assert "the W&B sweep sets learning.fit_every to 7, but this run has" in refusal(run_train, *words)


def test_a_sweep_without_logging_is_refused(monkeypatch: pytest.MonkeyPatch, refusal: Refusal) -> None:
    agent = Agent([*START, "random", "${args}"], monkeypatch)
    assert "wandb is off; add --wandb online to its command" in refusal(run_train, *agent.words("one", seed=1))


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("learning.fit_evry", 25, "learning.fit"),
        ("learning", {"fit_every": 25}, "learning"),
        ("pictures", "perhaps", "perhaps"),
        ("model.hidden", [8, "x"], "hidden"),
        ("seed", 1.5, "seed"),
    ],
)
def test_bad_parameters(name: str, value: Any, part: str, agent: Agent, refusal: Refusal) -> None:
    assert part in refusal(run_train, *agent.words("one", **{name: value}))


# ------------------------------------------------------------------ studies on Ray


def options(study: Study) -> dict[str, str]:
    (trial,) = study.trials()
    return dict(zip(trial.words[1::2], trial.words[2::2], strict=True))


def test_trials_of_a_study_are_a_group() -> None:
    study = Study("s", {"random": {}}, ("E-v0",))
    assert not [word for word in options(study) if "wandb" in word]
    on = options(Study("s", {"random": {}}, ("E-v0",), common={"wandb": "offline"}))
    assert (on["--wandb-group"], on["--wandb-job-type"]) == ("s", "trial")
    on = options(Study("s", {"random": {}}, ("E-v0",), common={"wandb": "off"}, wandb="online"))
    assert (on["--wandb"], on["--wandb-group"]) == ("online", "s")
    named = options(Study("s", {"random": {}}, ("E-v0",), common={"wandb": "online", "wandb_group": "mine"}))
    assert (named["--wandb-group"], named["--wandb-job-type"]) == ("mine", "trial")
    off = options(Study("s", {"random": {}}, ("E-v0",), common={"wandb": "online"}, wandb="off"))
    assert "--wandb-group" not in off


def test_logging_of_a_study_is_set_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    from experiments.sweep import __main__ as sweep

    Path("s.yaml").write_text("{name: s, agents: {random: {}}, environments: [E-v0]}")
    sweep.main(["s.yaml", "--list", "--wandb", "offline"])
    (line,) = capsys.readouterr().out.splitlines()
    assert "--wandb offline" in line
    assert "--wandb-group s --wandb-job-type trial" in line
    assert wandb.run is None
