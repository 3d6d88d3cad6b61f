"""The study of PETS' tasks, with runs that take a fraction of a second, and commands that train nothing."""

import json
import math
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.pets import PETS
from experiments.benchmarks import pets_tables, runs
from experiments.benchmarks import pets_tasks as study
from experiments.benchmarks.pets_tasks import ABLATION, STUDIES, TASKS, Job, PETSStudy, jobs
from experiments.run.config import parse
from tests.experiments.commands import QUICK, call, run_train

HERE = ("--output", "out", "--runs-dir", "trained")
OUTPUT = Path("out")


def result(variant: str, seed: int, returns: Sequence[float], **others: Any) -> dict[str, Any]:
    """Of a run on cart-pole."""
    numbers = {"r2": 0.9, "r2_min": 0.5, "residual_std": 1.25, "coverage_90": 0.875, "open_loop/relative_rmse_16": 0.25}
    return {
        **{"task": "cartpole", "variant": variant, "seed": seed, "asked_steps": 200 * len(returns), "goal": None},
        **{"n_total_env_steps": 200 * len(returns), "episodes": [(200 * (i + 1), x) for i, x in enumerate(returns)]},
        **{"best": max(returns), "last_five": float(np.mean(returns[-5:])), "seconds": 61.4, "cpu_seconds": 8.0},
        **{"asked_at": None, "cpu_seconds_per_step": 0.0123, "command": f"python {variant} {seed}", "machine": "One."},
        **{"model": {"random": {**numbers, "nll": None}, "agent": numbers}, **others},
    }


def write(name: str, *results: dict[str, Any]) -> None:
    OUTPUT.mkdir(exist_ok=True)
    for r in results:
        runs.keep(OUTPUT / f"{name}.jsonl", r)


def exit_code(*args: object) -> Any:
    with pytest.raises(SystemExit) as stop:
        call(study.main, *args, *HERE)
    return stop.value.code


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs by agent: one episode of PETS and a bit, and a few of SAC."""
    here = tmp_path_factory.mktemp("folders")
    for agent, env, steps in (("pets", "Pendulum-v1", 240), ("sac", "ContinuousCartPole-v0", 80)):
        own = (agent, "--env", env, *QUICK, "--trainer.n-total-env-steps", steps)
        run_train(*own, "--runs-dir", here, "--name", agent)
    return here


@pytest.fixture
def trained(folders: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the runs that were asked for; they find themselves trained."""
    names: list[str] = []

    def train_until(runs_dir: Path, name: str, arguments: Sequence[str], stop: Callable[[], bool]) -> bool:
        names.append(name)
        shutil.copytree(folders / arguments[0], runs_dir / name, dirs_exist_ok=True)
        return not stop()

    monkeypatch.setattr(runs, "train_until", train_until)
    monkeypatch.setattr(study, "N_JUDGED", 30)
    return names


@pytest.mark.parametrize("name", list(STUDIES))
def test_every_command_can_be_parsed(name: str) -> None:
    found = jobs(PETSStudy(study=name))  # type: ignore[arg-type]
    for job in {(job.task, job.variant in ABLATION): job for job in found}.values():  # of ensembles more below
        config = parse([*job.arguments, "--runs-dir", "x", "--name", job.name])
        assert (config.env, config.seed) == (TASKS[job.task].env, job.seed)
        assert config.trainer.n_total_env_steps == job.n_total_env_steps
    numbers = {"fast": 3 * 3 + 2, "paper": 1, "ablation": 2 * 3 * len(ABLATION), "sac": 4}
    assert len({(job.name, job.variant) for job in found}) == len(found) == numbers[name]


def test_the_released_settings_are_rolled_out_in_bfloat16_and_saved_after_each_episode() -> None:
    config = parse(jobs(PETSStudy(study="paper"))[0].arguments)
    released = PETS.preset("cartpole-paper")
    assert config.settings == replace(released, model=replace(released.model, rollout_dtype="bfloat16"))
    assert config.trainer.checkpoint_every == 200


def test_ensembles_differ_as_their_names_say() -> None:
    settings = {name: parse([*Job("pusher", name, 0, 10).arguments]).settings.model for name in ABLATION}
    assert {name: model.n_models * model.n_particles_per_model for name, model in settings.items()} == dict.fromkeys(
        ABLATION, 5
    )
    assert {name for name, model in settings.items() if model.deterministic} == {"DE"}
    assert {name for name, model in settings.items() if model.n_models == 1} == {"P"}
    assert {name for name, model in settings.items() if model.propagation == "ts1"} == {"PE-TS1"}
    without_noise = {name for name in TASKS if PETS.preset(f"{name}-fast").model.propagation != "tsinf"}
    assert without_noise == {"halfcheetah"}  # where `fast` is no PE-TSinf


def test_fewer_may_be_asked_for() -> None:
    found = jobs(PETSStudy(study="ablation", tasks=("reacher",), seeds=(7,), n_total_env_steps=300))
    assert {(job.task, job.seed, job.n_total_env_steps) for job in found} == {("reacher", 7, 300)}


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("--tasks", "walker"), "tasks is ('walker',), expected some of cartpole"),
        (("--seeds", -1), "seeds is (-1,), expected none below 0"),
        (("--workers", 0), "workers is 0, expected"),
        (("--n-total-env-steps", 0), "n_total_env_steps is 0, expected"),
        (("--stop-after-seconds", 0), "stop_after_seconds is 0.0, expected"),
        (("--study", "ablation", "--tasks", "halfcheetah"), "expected none whose `fast` has no noise in rollouts"),
        (("--study", "sac", "--tasks", "pusher"), "no results of fast for pusher"),
    ],
)
def test_bad_input(args: Sequence[object], told: str, refusal: Callable[..., str]) -> None:
    assert told in refusal(call, study.main, *args, *HERE)


def test_runs_are_trained_judged_and_kept_once(trained: list[str]) -> None:
    few = ("--tasks", "cartpole", "--seeds", 0, 1, "--n-total-env-steps", 240)
    assert exit_code(*few) == 0
    assert sorted(trained) == ["pets-cartpole-fast-0", "pets-cartpole-fast-1"]
    path = OUTPUT / "fast.jsonl"
    results = sorted(runs.kept(path), key=lambda r: r["seed"])
    assert [(r["seed"], r["asked_steps"], r["n_total_env_steps"]) for r in results] == [(0, 240, 240), (1, 240, 240)]
    for r in results:
        [(n_steps, value)] = r["episodes"]
        assert (n_steps, r["best"], r["last_five"], r["asked_at"]) == (200, value, value, None)
        assert r["cpu_seconds_per_step"] > 0
        assert r["command"].startswith("python -m experiments.train pets --preset cartpole-fast --env envs:PETSCart")
        for numbers in r["model"].values():
            assert 0 <= numbers["coverage_90"] <= 1
            assert numbers["open_loop/relative_rmse_16"] > 0
            assert not any("state_" in key or "member_" in key for key in numbers)
    assert f"| fast | 0 | 240 | not | {results[0]['best']:.1f} |" in (OUTPUT / "cartpole.md").read_text()
    before = path.read_bytes()
    assert exit_code(*few) == 0
    assert len(trained) == 2
    assert exit_code("--tasks", "cartpole", "--seeds", 1, "--n-total-env-steps", 250) == 0  # more of the same run
    assert trained[2:] == ["pets-cartpole-fast-1"]
    assert path.read_bytes().startswith(before)


def test_sac_is_enough_once_it_gets_as_far_as_fast(trained: list[str]) -> None:
    write("fast", result("fast", 0, [1.0, 30.0]), result("fast", 1, [5.0, 9.0]))  # of two, the lower one
    assert exit_code("--study", "sac", "--tasks", "cartpole", "--n-total-env-steps", 80) == 0
    [told] = runs.kept(OUTPUT / "sac.jsonl")
    assert (told["goal"], told["model"]) == (9.0, None)
    assert told["best"] >= 9.0  # episodes of the cart-pole that falls have more steps than that
    first = next(n for n, value in told["episodes"] if value >= 9.0)
    assert f"| as `fast` | 9.0 | 400 | {first} | {first / 400:.1f} |" in (OUTPUT / "cartpole.md").read_text()
    (OUTPUT / "sac.jsonl").unlink()
    assert exit_code("--study", "sac", "--tasks", "cartpole", "--n-total-env-steps", 80) == 0
    assert len(trained) == 1  # it was enough already


def test_models_of_the_released_settings_are_judged_on_fewer_steps(
    trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = []
    monkeypatch.setattr(study, "N_JUDGED_PAPER", 7)
    monkeypatch.setattr(pets_tables, "judge_model", lambda folder, n_steps, *_: judged.append((folder.name, n_steps)))
    for name in ("paper", "fast"):
        assert exit_code("--study", name, "--tasks", "cartpole", "--seeds", 0, "--n-total-env-steps", 40) == 0
    assert judged == [("pets-cartpole-paper-0", 7), ("pets-cartpole-fast-0", 30)]
    assert "released settings were judged on" in (OUTPUT / "cartpole.md").read_text()


def test_time_that_is_up_ends_everything(trained: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    few = ("--tasks", "cartpole", "--n-total-env-steps", 40, "--workers", 1)
    assert exit_code(*few, "--stop-after-seconds", 1e-9) == 75
    assert trained == []
    assert not (OUTPUT / "fast.jsonl").exists()
    assert "the same command goes on" in capsys.readouterr().out
    config = PETSStudy(tasks=("cartpole",), n_total_env_steps=40, workers=1, output=OUTPUT, runs_dir=Path("trained"))
    assert study.run_all(config, lambda: len(trained) == 2) == 75  # within the second run
    assert trained == ["pets-cartpole-fast-0", "pets-cartpole-fast-1"]
    assert [r["seed"] for r in runs.kept(OUTPUT / "fast.jsonl")] == [0]


def test_a_run_that_fails_does_not_end_the_others(
    trained: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real: Any = runs.train_until

    def train_until(runs_dir: Path, name: str, *args: Any) -> bool:
        if name.endswith("-0"):
            raise runs.RunError("it ended with exit code 3")
        return bool(real(runs_dir, name, *args))

    monkeypatch.setattr(runs, "train_until", train_until)
    assert exit_code("--tasks", "cartpole", "--seeds", 0, 1, "--n-total-env-steps", 40) == 1
    assert [r["seed"] for r in runs.kept(OUTPUT / "fast.jsonl")] == [1]
    assert "error: it ended with exit code 3" in capsys.readouterr().err


def test_the_report_has_a_row_for_each() -> None:
    fast = [result("fast", 0, [1.0, 180.0, 20.0], asked_at=400), result("fast", 1, [3.0, 2.0, 170.0])]
    write("fast", *fast, result("fast", 0, [199.0]))  # the last one is of when the run was shorter
    write("paper", result("paper", 0, [1.5, 90.0], cpu_seconds_per_step=2.5))
    write("ablation", result("P", 0, [1.0, 2.0]), result("P", 1, [1.0, 2.0]), result("gone", 0, [1.0]))
    write("sac", result("sac", 0, [0.0] * 8 + [172.0], goal=170.0))
    study.report(OUTPUT, "cartpole")
    lines = (OUTPUT / "cartpole.md").read_text().splitlines()
    assert (
        "Asked for: a running maximum of at least 175 within 3,000 environment steps. 1 of 2 seeds got there." in lines
    )
    rows = {
        "| 600 | 20.0 / 180.0 | 170.0 / 170.0 |",  # plain beside running maximum
        "| 400 | 90.0 / 90.0 | 180.0 / 180.0 | 2.0 / 3.0 |",  # of the paper's settings, and fast
        "| PE-TSinf | 2 | 91.5 [3.0, 180.0] | 46.5 [2.5, 90.5] | 1.00 |",  # of `fast`, as long as the others are
        "| P | 2 | 2.0 [2.0, 2.0] | 1.5 [1.5, 1.5] |  |",
        "| asked for | 175.0 | not | not |  |",  # the worse one of two
        "| as `fast` | 170.0 | 600 | 1800 | 3.0 |",
        "| fast | 0 | 600 | 400 | 180.0 | 67.0 | 12.3 | 61 |",
        "| paper | 0 | 400 | not | 90.0 | 45.8 | 2500.0 | 61 |",
        "| fast | 1 | agent | 0.900 | 0.500 | 1.250 | 0.875 |  |  |  | 0.250 |",
        "    python P 1",
        "One.",
    }
    assert rows <= set(lines), rows - set(lines)
    assert (OUTPUT / "cartpole.png").stat().st_size > 10_000


def test_sac_is_to_have_the_median_of_fast_or_what_was_asked_for() -> None:
    goals = {}
    for best in [(1.0, 2.0, 180.0), (179.0, 180.0), (1.0, 2.0), (1.0, 2.0, 3.0)]:
        write("fast", *(result("fast", seed, [x]) for seed, x in enumerate(best)))
        goals[best] = study.goal_of(OUTPUT, "cartpole")
        (OUTPUT / "fast.jsonl").unlink()
    assert list(goals.values()) == [175.0, 179.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("fast", "sac", "row"),
    [
        ([[1.0, 2.0]], [[1.0, 3.0]], "| asked for | 175.0 | not | not |  |"),
        ([[1.0, 177.0, 1.0]], [[0.0] * 8 + [177.0]], "| asked for | 175.0 | 400 | 1800 | 4.5 |"),
        ([[180.0, 1.0]], [[0.0] * 9], "| asked for | 175.0 | 200 | not | more than 9.0 |"),
        ([[0.0] * 6 + [180.0]], [[0.0] * 12], "| asked for | 175.0 | 1400 | not | more than 1.7 |"),  # 1.71...
        ([[1.0] * 7], [[0.0, 177.0]], "| asked for | 175.0 | not | 400 | less than 0.3 |"),  # 0.285...
        ([[180.0], [1.0, 2.0]], [[1.0, 180.0, 2.0]], "| asked for | 175.0 | not | 400 | less than 1.0 |"),
        # One SAC was stopped before the others got there; the median is of those that did, or where the first ended.
        ([[180.0]], [[0.0, 0.0], [0.0, 180.0], [0.0, 0.0, 180.0]], "| asked for | 175.0 | 200 | 600 | 3.0 |"),
        ([[180.0]], [[0.0], [0.0], [0.0, 0.0, 180.0]], "| asked for | 175.0 | 200 | not | more than 1.0 |"),
    ],
)
def test_steps_of_sac_are_compared_or_bounded(fast: list[list[float]], sac: list[list[float]], row: str) -> None:
    write("fast", *(result("fast", seed, returns) for seed, returns in enumerate(fast)))
    write("sac", *(result("sac", seed, returns, goal=175.0) for seed, returns in enumerate(sac)))
    study.report(OUTPUT, "cartpole")
    text = (OUTPUT / "cartpole.md").read_text()
    assert row in text
    assert "| as `fast`" not in text  # it would be the same


def test_sac_may_have_another_goal_than_what_was_asked_for() -> None:
    write("fast", result("fast", 0, [1.0, 2.0]))
    write("sac", result("sac", 0, [1.0, 177.0], goal=2.0))
    study.report(OUTPUT, "cartpole")
    text = (OUTPUT / "cartpole.md").read_text()
    assert "| asked for | 175.0 | not | 400 | less than 1.0 |" in text
    assert "| as `fast` | 2.0 | 400 | 400 | 1.0 |" in text


def test_a_run_that_ended_has_no_returns_any_more() -> None:
    returns = [result("fast", 0, [1.0, 2.0]), result("fast", 1, [3.0, 4.0, 5.0])]
    assert pets_tables.returns_table(returns)[2:] == [
        "| 200 | 1.0 / 1.0 | 3.0 / 3.0 |",
        "| 400 | 2.0 / 2.0 | 4.0 / 4.0 |",
        "| 600 |  | 5.0 / 5.0 |",
    ]


def test_a_run_that_is_shorter_than_an_episode() -> None:
    write("fast", {**result("fast", 0, [1.0]), "episodes": [], "best": None, "last_five": None})
    study.report(OUTPUT, "cartpole")
    assert "| fast | 0 | 200 | not |  |  | 12.3 | 61 |" in (OUTPUT / "cartpole.md").read_text()
    assert not (OUTPUT / "cartpole.png").exists()


def test_ensembles_are_compared_after_as_many_steps() -> None:
    longer = result("DE", 0, [1.0, 2.0, 99.0])
    assert pets_tables.ranking_table([longer, result("P", 0, [1.0, 5.0])])[2:] == [
        "| P | 1 | 5.0 [5.0, 5.0] | 3.0 [3.0, 3.0] | 1.00 |",
        "| DE | 1 | 2.0 [2.0, 2.0] | 1.5 [1.5, 1.5] |  |",
    ]


def test_the_bootstrap_has_the_error_of_the_mean() -> None:
    values = np.random.default_rng(0).normal(size=400)
    assert pets_tables.bootstrap(values).std() == pytest.approx(values.std() / 20, rel=0.05)
    assert pets_tables.bootstrap(values).mean() == pytest.approx(values.mean(), abs=0.002)


def test_when_a_return_was_reached() -> None:
    curve = [(200, -5.0), (400, -2.0), (600, -1.0)]
    assert pets_tables.reached(curve, -2.0) == 400
    assert pets_tables.reached(curve, -1.0, within=599) is None
    assert pets_tables.reached([], -math.inf) is None
    assert pets_tables.best_so_far([(1, 3.0), (2, 1.0), (3, 4.0)]) == [(1, 3.0), (2, 3.0), (3, 4.0)]


PATIENT = """
import signal, sys, time
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
print("ready", flush=True)
while not asked:
    time.sleep(0.01)
time.sleep(0.2)
sys.exit(75 if len(asked) == 1 else 9)
"""


def test_a_run_is_asked_once_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "POLL_SECONDS", 0.01)
    log = tmp_path / "log"
    assert not runs.run_until([sys.executable, "-c", PATIENT], log, lambda: "ready" in log.read_text())
    assert runs.run_until([sys.executable, "-c", "print('done')"], log, lambda: False)
    assert log.read_text().split() == ["ready", "done"]
    # A signal that comes before there is anything to save.
    assert not runs.run_until([sys.executable, "-c", "import time; time.sleep(60)"], log, lambda: True)


def test_a_run_that_failed_says_where_to_look(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(runs.RunError, match=f"exit code 2: see {log}"):
        runs.run_until([sys.executable, "-c", "raise SystemExit(2)"], log, lambda: False)


def test_nobody_is_left_behind_if_the_question_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "POLL_SECONDS", 0.01)
    log = tmp_path / "log"

    def stop() -> bool:
        if "ready" in log.read_text():
            raise OSError("disk")
        return False

    ended = tmp_path / "ended"
    script = PATIENT.replace("sys.exit", f"open({str(ended)!r}, 'w'); sys.exit")
    with pytest.raises(OSError, match="disk"):
        runs.run_until([sys.executable, "-c", script], log, stop)
    assert ended.exists()


def test_lines_of_several_studies_stay_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    for i in range(3):
        runs.keep(path, {"i": i, "long": "x" * 20_000})
    assert [r["i"] for r in runs.kept(path)] == [0, 1, 2]
    assert all(json.loads(line) for line in path.read_text().splitlines())
