"""Studies on Ray itself: a cluster that loses a machine, and a command that is stopped."""

import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.sweep.__main__ import Sweep
from experiments.sweep.guard import newest_checkpoint
from experiments.sweep.search import optuna_suggest
from experiments.sweep.study import Choice, Range, Resources, Search, Study
from experiments.sweep.tasks import RayPool
from tests.experiments.commands import assert_same_run, run_train, without_time
from tests.experiments.sweeps import RUNS, Threads, a_study, make, prepare, table, until

ROOT = Path(__file__).parents[3]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]

QUICK = {"preset": "debug", "pictures": False, "tensorboard": False}
TRAINED = Study("s", {"random": {}}, ("ContinuousCartPole-v0",), (0, 1, 2), {**QUICK, "trainer.checkpoint_every": 200})


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch):
    """Two machines of one core each; gives a function that kills the second as with a power failure."""
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "600")  # on a machine that is busy
    from ray.cluster_utils import Cluster

    little = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    made = Cluster(initialize_head=True, head_node_args={**little, "include_dashboard": False})
    second = made.add_node(**little)
    pool = RayPool(made.address, None, Resources())
    try:
        yield pool, lambda: made.remove_node(second, allow_graceful=False)
    finally:
        pool.close()
        made.shutdown()


def losing_a_machine(sweep: Sweep, kill: object) -> None:
    """Run a study, and kill a machine when both train."""
    killed: list[bool] = []

    def watch() -> bool:
        under_way = [one for one in sweep.progress if one.state == "running"]
        saved = [newest_checkpoint(sweep.folder / one.trial.name) > one.n_saved for one in under_way]
        if len(under_way) == 2 and all(saved) and not killed:
            killed.append(True)
            kill()
        return False

    sweep.run(watch)
    assert killed
    assert sweep.done
    assert sorted(row["trial"] for row in table()) == sorted(trial.name for trial in sweep.study.trials())
    assert sorted(row["tries"] for row in table()) == ["1"] * (len(sweep.progress) - 1) + ["2"]


def test_what_a_lost_machine_trained_is_trained_on_another(cluster: tuple[RayPool, object]) -> None:
    study = a_study(seeds=(0, 1, 2), common={"steps": 300, "pause": 0.1})
    losing_a_machine(prepare(study, cluster[0]), cluster[1])
    assert make(a_study(seeds=(0, 1, 2), common={"steps": 300}), Threads(), Path("runs/whole")).done
    for trial in study.trials():
        assert without_time(RUNS / trial.name) == without_time(Path("runs/whole") / trial.name)


def test_runs_on_a_lost_machine_come_out_the_same(cluster: tuple[RayPool, object]) -> None:
    study = Study(**{**vars(TRAINED), "common": {**TRAINED.common, "trainer.n_total_env_steps": 20_000}})
    losing_a_machine(Sweep(study, RUNS, cluster[0]), cluster[1])
    for trial in study.trials():
        run_train(*trial.arguments(Path("runs/whole")))
        assert_same_run(RUNS / trial.name, Path("runs/whole") / trial.name)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_the_command_stops_and_goes_on(number: signal.Signals) -> None:
    steps = 20_000
    Path("study.yaml").write_text(
        "{name: s, agents: {random: {}}, environments: [ContinuousCartPole-v0], common: {preset: debug, pictures: no,"
        f" tensorboard: no, trainer: {{n_total_env_steps: {steps}, checkpoint_every: 200}}}}}}"
    )
    command = [sys.executable, "-m", "experiments.sweep", "study.yaml", "--cpus", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    (trial,) = [RUNS / "random-ContinuousCartPole-v0-seed0"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        until(lambda: newest_checkpoint(trial) > 0)
        process.send_signal(number)
        told = process.stdout.read()
    assert process.returncode == 75, told
    assert f"stopped by {number.name}; the same command goes on" in told
    assert 0 < newest_checkpoint(trial) < steps
    assert not list(RUNS.glob("sweep/*.lease"))
    subprocess.run(command, env=environment, check=True)
    words = trial.parent / "sweep" / f"{trial.name}.done"
    assert words.exists()
    assert table()[0]["state"] == "done"


needs_optuna = pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="Optuna is not installed")


@needs_optuna
def test_optuna_comes_closer_and_starts_anew_where_it_was() -> None:
    kinds = {"a.b": Range(1e-5, 1.0, log=True), "n": Range(1, 64, log=True, integer=True), "c": Choice(("x", None, 2))}
    search, suggest = Search(40, kinds, method="optuna"), optuna_suggest()
    known: list = []
    for i in range(search.n_trials):
        one = suggest(search, i, known)
        assert 1e-5 <= one["a.b"] == float(f"{one['a.b']:.4g}") <= 1
        assert one["n"] in range(1, 65)
        score = -abs(math.log10(one["a.b"]) + 2) - abs(math.log2(one["n"]) - 3) - (one["c"] is not None)
        known.append((one, None if i % 8 == 7 else score))  # some fail, or have not ended
    scores = [score for _, score in known if score is not None]
    assert sum(scores[-10:]) / 10 > sum(scores[:10]) / 10 + 1
    assert optuna_suggest()(search, 39, json.loads(json.dumps(known[:39]))) == known[39][0]


@needs_optuna
def test_a_search_through_optuna_and_ray() -> None:
    search = Search(3, {"steps": Range(3, 30, integer=True)}, method="optuna")
    study = a_study(common={"pause": 0.05}, search=search, seeds=(0, 1))
    pool = RayPool(None, 2, Resources())
    try:
        assert pool.room() == 2
        first = prepare(study, pool)
        first.run(lambda: any(one.state == "done" for one in first.progress))
        draws = json.loads((RUNS / "draws.json").read_text())["draws"]
        assert make(study, pool).done
    finally:
        pool.close()
    after = json.loads((RUNS / "draws.json").read_text())["draws"]
    assert after[: len(draws)] == draws
    assert len(after) == 3
    assert [(row["steps"], row["state"]) for row in table()] == [
        (str(draw["settings"]["steps"]), "done") for draw in after for _ in range(2)
    ]


def test_what_does_not_fit_is_told() -> None:
    with pytest.raises(ValueError, match=r"a trial takes 2 CPU, 0 GPU; this machine has 1 CPU, 0 GPU"):
        RayPool(None, 1, Resources(cpus=2))


def test_the_driver_loads_no_ray_and_training_needs_none() -> None:
    code = "import sys, experiments.sweep; assert not {'ray', 'optuna', 'torch'} & sys.modules.keys()"
    # That Ray is not loaded cannot be asked of training: tianshou loads it where it is installed.
    code += "; sys.modules['ray'] = sys.modules['optuna'] = None; import layeredrl, experiments.train"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
