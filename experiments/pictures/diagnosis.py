"""Measurements of a world model on fresh data, and their figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from experiments.pictures.states import state_names
from experiments.run.held_out import collect, displaced, longest_episode, trajectories, transitions
from layeredrl.environments import EnvConfig
from layeredrl.hierarchy import Hierarchy
from layeredrl.models.diagnostics.figures import draw_calibration, draw_disagreement, draw_open_loop, draw_predictions
from layeredrl.models.diagnostics.measures import (
    Disagreement,
    OneStep,
    OpenLoop,
    evaluate_disagreement,
    evaluate_one_step,
    evaluate_open_loop,
)
from layeredrl.world_model import WorldModel


@dataclass(frozen=True)
class Diagnosis:
    """Errors of a world model, and how well it knows them."""

    one_step: OneStep
    open_loop: OpenLoop
    disagreement: Disagreement
    names: Sequence[str]
    """Names of the state's dimensions, S of them."""

    def metrics(self) -> dict[str, float]:
        """All metrics of the ensemble by name, without those of single members.

        Names of metrics of a single dimension of the state end in the name of the dimension.
        """
        metrics = self.one_step.metrics() | self.open_loop.metrics() | self.disagreement.metrics()
        return {self._named(key): value for key, value in metrics.items() if "/member_" not in key}

    def _named(self, key: str) -> str:
        first, _, number = key.rpartition("/state_")
        return f"{first}/{self.names[int(number)]}" if first else key

    def draw(self, folder: Path, policy: str, title: str) -> None:
        """Write the figures model_NAME_POLICY.png.

        Args:
            folder: Folder of the figures.
            policy: Name of the policy that acted.
            title: Title of the figures.
        """
        figures = {
            "predictions": draw_predictions(self.one_step, self.names, title=title),
            "calibration": draw_calibration(self.one_step, self.names, title=title),
            "open_loop": draw_open_loop(self.open_loop, self.names, title=title),
            "disagreement": draw_disagreement(self.disagreement, self.names, title=title),
        }
        for name, figure in figures.items():
            figure.savefig(folder / f"model_{name}_{policy}.png", dpi=120)


def diagnose(
    world: WorldModel, env: str | EnvConfig, agent: Hierarchy | None, *, n_steps: int, horizon: int, seed: int
) -> Diagnosis:
    """Collect fresh data and compare them with the model's predictions.

    Args:
        world: The world model.
        env: Id or recipe of the environment.
        agent: Agent that acts; None for uniformly random actions.
        n_steps: Number of environment steps to collect.
        horizon: Steps of open-loop rollouts; at most the length of the longest episode is used.
        seed: Random seed of the data and of the rollouts.
    """
    data = collect(env, agent, n_steps=n_steps, seed=seed, offset=world.task.offset)
    model = world.dynamics
    rows, pieces = transitions(data, world), trajectories(data, min(horizon, longest_episode(data)), world)
    return Diagnosis(
        evaluate_one_step(model, rows),
        evaluate_open_loop(model, pieces, generator=torch.Generator(model.device).manual_seed(seed)),
        evaluate_disagreement(model, rows, displaced(rows)),
        state_names(world.encoder, world.task),
    )
