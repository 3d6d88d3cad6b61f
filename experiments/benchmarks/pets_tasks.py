"""The tasks of PETS, reproduced: `python -m experiments.benchmarks.pets_tasks --study fast|paper|ablation|sac`.

Every run is trained by a command of its own, which goes on where it was stopped; its result is kept as a line of JSON,
and tables and curves of its task are made anew from all lines. Exit codes: 0 done, 1 a run failed, 2 bad input, 75
asked to stop, or out of time: the same command goes on.
"""

import math
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from experiments.benchmarks import pets_tables, runs
from experiments.run.command_line import command_line, fail
from experiments.run.folder import CHECKPOINTS
from experiments.run.signals import STOPPED, StopRequest
from layeredrl.checks import require_counts, require_number
from layeredrl.storage import Checkpoints

Result = Mapping[str, Any]
N_JUDGED, N_JUDGED_PAPER = 300, 100
"""Environment steps with each policy that a trained model is judged by; fewer where a step takes some seconds."""
HORIZON = 20
"""Of the rollouts that it is judged by."""
SEED = 2_000_000
"""Of that data; far from those of training."""


@dataclass(frozen=True)
class Task:
    """What is learned, how well, and how fast."""

    env: str
    asked: float
    """Return that the best episode so far is to get to, ..."""
    within: int
    """... and within how many environment steps."""
    episode: int
    """Steps of an episode."""
    n_seeds: int = 3
    n_random_steps: int = 1000  # of SAC


TASKS = {
    "cartpole": Task("envs:PETSCartpole-v0", 175.0, 3000, 200),
    "pusher": Task("envs:PETSPusher-v0", -60.0, 7500, 150),
    "reacher": Task("envs:PETSReacher-v0", -50.0, 15_000, 150),
    # Two seeds, as each takes hours; random steps as in experiments/results/sac.md.
    "halfcheetah": Task("envs:PETSHalfCheetah-v0", 4000.0, 50_000, 1000, n_seeds=2, n_random_steps=5000),
}
STUDIES = {"fast": tuple(TASKS), "paper": ("cartpole",), "ablation": ("cartpole", "pusher"), "sac": tuple(TASKS)}
"""Studies, and the tasks that each of them is of."""
ABLATION: dict[str, tuple[str, ...]] = {
    "PE-TS1": ("--model.propagation", "ts1"),
    "DE": ("--model.deterministic",),
    "P": ("--model.n-models", "1", "--model.n-particles-per-model", "5"),  # as many particles as the others
}
"""Ways to model and to follow particles, as settings on top of `fast`, ..."""
AS_FAST = "PE-TSinf"
"""... and the one that `fast` has, whose runs they are compared with."""
PAPER = ("--model.rollout-dtype", "bfloat16")
"""The released settings take twice as long with rollouts in float32."""
SAC = ("sac", "--preset", "paper", "--sac.learning-rate", "1e-3")
SAC_STEPS = 100_000
_LINES = ("fast", "paper", AS_FAST, *ABLATION, "sac")


@dataclass(frozen=True)
class PETSStudy:
    """Train PETS on its tasks, or what it is compared with."""

    study: Literal["fast", "paper", "ablation", "sac"] = "fast"
    """The small budget; the released code's settings with rollouts in bfloat16, for five planned episodes; ensembles of
    other kinds; or SAC, until it got as far as `fast`, whose results it needs: see `goal_of`."""
    tasks: tuple[str, ...] = ()
    """Which, by name; those that the study is of by default."""
    seeds: tuple[int, ...] = ()
    """Of the runs; by default three, for halfcheetah two, for paper and sac one."""
    n_total_env_steps: int | None = None
    """Environment steps of a run; those that the study has for the task by default."""
    workers: int = 2
    """Runs side by side, each with one thread."""
    stop_after_seconds: float = math.inf
    """Ask the runs to stop after so long; the same command goes on with them."""
    output: Path = Path("experiments/results/pets")
    """Folder of results, tables and curves."""
    runs_dir: Path = Path("runs")
    """Where the runs are."""

    def __post_init__(self) -> None:
        if not set(self.tasks) <= set(TASKS):
            raise ValueError(f"tasks is {self.tasks}, expected some of {', '.join(TASKS)}")
        if self.study == "ablation" and "halfcheetah" in self.tasks:
            raise ValueError(f"tasks is {self.tasks}, expected none whose `fast` has no noise in rollouts: halfcheetah")
        if min(self.seeds, default=0) < 0:
            raise ValueError(f"seeds is {self.seeds}, expected none below 0")
        require_counts(self, workers=1, **({} if self.n_total_env_steps is None else {"n_total_env_steps": 1}))
        require_number("stop_after_seconds", self.stop_after_seconds, 0, math.inf, open_low=True)


@dataclass(frozen=True)
class Job:
    """One run: what is trained, with which seed, for how long."""

    task: str
    variant: str
    """fast, paper, sac, or one of the ablation's."""
    seed: int
    n_total_env_steps: int

    @property
    def name(self) -> str:
        """Of the run's folder."""
        return f"pets-{self.task}-{self.variant}-{self.seed}"

    @property
    def arguments(self) -> list[str]:
        """As `experiments.train` takes them."""
        task = TASKS[self.task]
        match self.variant:
            case "sac":
                own = [*SAC, "--learning.n-random-steps", str(task.n_random_steps)]
            case "paper":
                own = ["pets", "--preset", f"{self.task}-paper", *PAPER]
            case _:
                own = ["pets", "--preset", f"{self.task}-fast", *ABLATION.get(self.variant, ())]
        own += ["--env", task.env, "--seed", str(self.seed), "--no-pictures", "--no-tensorboard"]
        own += ["--trainer.n-total-env-steps", str(self.n_total_env_steps)]
        # An episode with the released settings takes more than twenty minutes.
        n_episodes = 1 if self.variant == "paper" else 5
        return [*own, "--trainer.checkpoint-every", str(n_episodes * task.episode)]

    def is_of(self, result: Result) -> bool:
        """Whether a result is this run's."""
        own = {"task": self.task, "variant": self.variant, "seed": self.seed, "asked_steps": self.n_total_env_steps}
        return all(result[key] == value for key, value in own.items())


def jobs(config: PETSStudy) -> list[Job]:
    """All runs of a study, those of one task after those of another."""
    variants, found = tuple(ABLATION) if config.study == "ablation" else (config.study,), []
    for name in config.tasks or STUDIES[config.study]:
        task = TASKS[name]
        n_steps = {"paper": 6 * task.episode, "sac": SAC_STEPS}.get(config.study, task.within)
        seeds = config.seeds or range(1 if config.study in ("paper", "sac") else task.n_seeds)
        steps = config.n_total_env_steps or n_steps
        found += [Job(name, variant, seed, steps) for seed in seeds for variant in variants]
    return found


def train(job: Job, config: PETSStudy, over: Callable[[], bool], goal: float = math.inf) -> bool:
    """Train until a training episode's return is the goal, if it ever is; False if time is up before: it can go on."""

    def enough() -> bool:
        return pets_tables.reached(_episodes(config.runs_dir / job.name), goal) is not None

    def stop() -> bool:
        return over() or enough()

    return enough() or runs.train_until(config.runs_dir, job.name, job.arguments, stop) or enough()


def result_of(job: Job, config: PETSStudy, goal: float = math.inf) -> dict[str, Any]:
    """What is kept of a run that was trained."""
    folder = config.runs_dir / job.name
    episodes, told = _episodes(folder), runs.cost(config.runs_dir, job.name, job.arguments)
    clock = runs.columns(folder / "metrics.csv", ("time/seconds", "time/cpu_seconds"))
    n_timed, cpu_seconds = clock["time/cpu_seconds"][-1]  # a checkpoint may be a few steps younger
    returns = [value for _, value in episodes]
    n_judged = N_JUDGED_PAPER if job.variant == "paper" else N_JUDGED
    return {
        "task": job.task,
        "variant": job.variant,
        "seed": job.seed,
        "asked_steps": job.n_total_env_steps,
        "n_total_env_steps": Checkpoints(folder / CHECKPOINTS).newest(),
        "goal": goal if goal < math.inf else None,
        "episodes": episodes,
        "best": max(returns, default=None),
        "last_five": statistics.mean(returns[-5:]) if returns else None,
        "asked_at": pets_tables.reached(episodes, TASKS[job.task].asked),
        "seconds": clock["time/seconds"][-1][1],
        "cpu_seconds_per_step": cpu_seconds / n_timed,
        "model": pets_tables.judge_model(folder, n_judged, HORIZON, SEED),
        **told,
    }


def _episodes(folder: Path) -> list[tuple[int, float]]:
    """Environment steps at the end of each training episode, and its return; none before there are metrics."""
    path = folder / "metrics.csv"
    return runs.columns(path, ("env/episode_return",))["env/episode_return"] if path.exists() else []


def run_all(config: PETSStudy, over: Callable[[], bool]) -> int:
    """Do what is left of a study; the exit code."""
    path = config.output / f"{config.study}.jsonl"
    todo = [job for job in jobs(config) if not any(job.is_of(r) for r in runs.kept(path))]
    goals = {name: goal_of(config.output, name) for name in {job.task for job in todo} if config.study == "sac"}
    config.output.mkdir(parents=True, exist_ok=True)
    lock = threading.Lock()

    def work(job: Job) -> int:
        if over():
            return STOPPED
        goal = goals.get(job.task, math.inf)
        try:
            if not train(job, config, over, goal):
                return STOPPED
        except runs.RunError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        with lock:
            if over():  # with the released settings, judging takes long
                return STOPPED
            runs.keep(path, result_of(job, config, goal))
            report(config.output, job.task)
        return 0

    with ThreadPoolExecutor(config.workers) as pool:
        codes = set(pool.map(work, todo))
    return next((code for code in (1, STOPPED) if code in codes), 0)


def goal_of(output: Path, name: str) -> float:
    """The return that SAC is to get to: the median over the seeds of `fast` of their best; of two, the lower one.

    If that is less than what was asked for, but one of the seeds has that, SAC is to have it too.
    """
    best = [r["best"] for r in results_of(output, name)["fast"] if r["best"] is not None]
    if not best:
        raise ValueError(f"{output} has no results of fast for {name}, which sac is to get to: run --study fast first")
    goal, asked = statistics.median_low(best), TASKS[name].asked
    return float(max(goal, asked) if max(best) >= asked else goal)


def results_of(output: Path, name: str) -> dict[str, list[dict[str, Any]]]:
    """A task's results by study, in order; of each run the longest."""
    found = {}
    for study in STUDIES:
        results = sorted(runs.kept(output / f"{study}.jsonl"), key=lambda r: r["n_total_env_steps"])
        variants = tuple(ABLATION) if study == "ablation" else (study,)
        longest = {(r["variant"], r["seed"]): r for r in results if r["task"] == name and r["variant"] in variants}
        found[study] = [longest[key] for key in sorted(longest, key=lambda key: (variants.index(key[0]), key[1]))]
    return found


_INTRODUCTION = """`python -m experiments.benchmarks.pets_tasks`. Returns are those of the training episodes, the first
of which are random. The paper plots their running maximum, the best return so far.
"""
_ASKED = """Asked for: a running maximum of at least {:g} within {:,} environment steps. {} of {} seeds got there.
Return / running maximum:
"""
_PAPER = """## The released settings

Five planned episodes, with rollouts in bfloat16, and as many steps of `fast`: return / running maximum. Costs are among
the runs below; they are means over all steps, of which the first episode's are random and cost little.
"""
_ABLATION = """## Ensembles

All with the settings of `fast`, which is PE-TSinf, and as many environment steps, best first. In brackets: 95 %
intervals of a bootstrap over seeds, which tell little of few. Above the next: share of its draws in which the running
maximum is.
"""
_SAC = """## SAC

Environment steps until an episode first had the return that was asked for, and that which `fast` got to: the median
over seeds of the best return. Medians over seeds; of two, the worse one. SAC stops once it has the higher of these two
returns, the first of them only if a seed of `fast` has it; or where it was stopped, with a bound on the ratio.
"""
_MODELS = f"""## Models

After training, on {N_JUDGED} new environment steps with random and with the agent's own actions. R² of the change in
state, mean and worst of the dimensions that vary; residuals in predicted standard deviations, and share of outcomes
in central 90 % intervals (1 and 0.9 are right); mean distance of observed from expected coverage. Error after k steps
of the model's own predictions, relative to that of "nothing changes".
"""
_MODELS_PAPER = f"""Those of the released settings were judged on {N_JUDGED_PAPER} steps.
"""


def report(output: Path, name: str) -> None:
    """Write a task's tables and curves from all results that are kept of it."""
    task, found = TASKS[name], results_of(output, name)
    fast, paper, ablation, sac = found.values()
    everything = [*fast, *paper, *ablation, *sac]
    if not everything:
        return
    draw(output / f"{name}.png", found)
    lines = [f"# {task.env.partition(':')[2]}", "", _INTRODUCTION]
    if fast:
        n_got = sum(pets_tables.reached(r["episodes"], task.asked, task.within) is not None for r in fast)
        lines += [_ASKED.format(task.asked, task.within, n_got, len(fast)), *pets_tables.returns_table(fast), ""]
    if paper:
        lines += [_PAPER, *pets_tables.returns_table(paper + fast, max(r["n_total_env_steps"] for r in paper)), ""]
    lines += [_ABLATION, *pets_tables.ranking_table([*_named(AS_FAST, fast), *ablation]), ""] if ablation else []
    lines += [_SAC, *_against(task.asked, fast, sac), ""] if sac and fast else []
    lines += ["## Runs", "", *_runs(task, everything), "", f"![curves]({name}.png)", ""]
    lines += [_MODELS, *([_MODELS_PAPER] if paper else ())]
    lines += [*pets_tables.model_table(everything), "", "Commands:", ""]
    lines += [f"    {command}" for command in dict.fromkeys(r["command"] for r in everything)]
    (output / f"{name}.md").write_text("\n".join([*lines, "", everything[-1]["machine"], ""]))


def _named(variant: str, results: Sequence[Result]) -> list[Result]:
    return [{**result, "variant": variant} for result in results]


def _against(asked: float, fast: Sequence[Result], sac: Sequence[Result]) -> list[str]:
    rows, goal = [], max(r["goal"] for r in sac)
    for label, value in [("asked for", asked), ("as `fast`", goal)][: 1 if goal == asked else 2]:
        (own, least), (other, least_other) = (_steps_until(value, group) for group in (fast, sac))
        if own is not None and other is not None:
            ratio = f"{other / own:.1f}"
        elif own is not None:  # of a bound, the digits that hold
            ratio = f"more than {math.floor(10 * least_other / own) / 10:.1f}"
        else:
            ratio = "" if other is None else f"less than {math.ceil(10 * other / least) / 10:.1f}"
        rows.append((label, f"{value:.1f}", *("not" if n is None else n for n in (own, other)), ratio))
    return runs.table(("", "return", "steps of PETS", "steps of SAC", "ratio"), rows)


def _steps_until(value: float, results: Sequence[Result]) -> tuple[int | None, int]:
    """Environment steps until an episode had the return, None if it never had; and how many they are at least."""
    steps = [pets_tables.reached(r["episodes"], value) for r in results]
    median = statistics.median_high(math.inf if n is None else n for n in steps)
    if median < math.inf:
        return int(median), int(median)
    return None, statistics.median_high(n or r["n_total_env_steps"] for n, r in zip(steps, results, strict=True))


def _runs(task: Task, results: Sequence[Result]) -> list[str]:
    header = ("run", "seed", "environment steps", f"at least {task.asked:g} at", "running maximum", "last five")
    return runs.table(
        (*header, "CPU ms per step", "wall time, s"),
        [
            (
                *(r["variant"], r["seed"], r["n_total_env_steps"], r["asked_at"] or "not"),
                *(pets_tables.rounded(r["best"], 1), pets_tables.rounded(r["last_five"], 1)),
                *(f"{1e3 * r['cpu_seconds_per_step']:.1f}", f"{r['seconds']:.0f}"),
            )
            for r in results
        ],
    )


def draw(path: Path, found: Mapping[str, Sequence[Result]]) -> None:
    """Returns and their running maximum: of `fast` and `paper`, of the ensembles, and beside SAC."""
    everything = [r for results in found.values() for r in results]
    everything += _named(AS_FAST, found["fast"]) if found["ablation"] else []
    lines = {name: [r for r in everything if r["variant"] == name] for name in _LINES}
    plain = {name: [r["episodes"] for r in group if r["episodes"]] for name, group in lines.items()}
    best = {name: [pets_tables.best_so_far(curve) for curve in curves] for name, curves in plain.items()}
    panels: dict[str, tuple[Mapping[str, Any], tuple[str, ...]]] = {"return": (plain, ("fast", "paper"))}
    panels["running maximum"] = (best, ("fast", "paper"))
    panels["running maximum, ensembles"] = (best, (AS_FAST, *ABLATION))
    panels["running maximum, beside SAC"] = (best, ("fast", "sac") if found["sac"] else ())
    drawn = {label: {name: curves[name] for name in names if curves[name]} for label, (curves, names) in panels.items()}
    if any(drawn.values()):  # else no episode has ended
        runs.draw_curves(path, {label: curves for label, curves in drawn.items() if curves}, "environment steps")


def main() -> None:
    """Train, judge, tell."""
    try:
        config = command_line(PETSStudy, sys.argv[1:], prog="python -m experiments.benchmarks.pets_tasks")
        deadline = time.monotonic() + config.stop_after_seconds
        torch.set_num_threads(1)
        with StopRequest() as asked:
            code = run_all(config, lambda: bool(asked) or time.monotonic() >= deadline)
    except ValueError as error:
        fail(error)
    for name in config.tasks or STUDIES[config.study]:
        report(config.output, name)
    if code == STOPPED:
        print("stopped; the same command goes on")
    raise SystemExit(code)


if __name__ == "__main__":
    main()
