"""A plan: what the model predicted, and what happened."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tianshou.data import Batch

from experiments.pictures.states import state_names
from experiments.run.playing import Track, play_track
from layeredrl.environments import EnvConfig, make_vector_env
from layeredrl.hierarchy import Hierarchy
from layeredrl.levels import PlannerLevel
from layeredrl.models.diagnostics.figures import GREY, panel_grid, shown_dims


@dataclass(frozen=True)
class Comparison:
    """A plan, its prediction, and what happened."""

    predicted: Batch
    """Prediction of `WorldModel.rollout` for copies of the plan, (particles, ...)."""
    carried_out: Track | None
    """Track of the plan's own actions; None if the environment does not repeat itself."""
    replanned: Track
    """Track of the agent, which plans anew at every step."""
    horizon: int
    """Number of predicted steps."""
    step_length: int = 1
    """Number of environment steps of a predicted step, and of a step of the tracks."""

    def rows(self) -> dict[str, str]:
        """Returns of the prediction and of the tracks, as rows of a table."""
        returns = (self.predicted.alive * self.predicted.reward).sum(-1)
        carried_out = "not comparable: the environment does not repeat itself"
        if self.carried_out is not None:
            carried_out = self._return(self.carried_out)
        return {
            "predicted return": f"{float(returns.mean()):.2f} ± {float(returns.std(correction=0)):.2f} over particles",
            "members' means": ", ".join(f"{x:.2f}" for x in returns.mean((0, 2)).tolist()),
            "plan carried out": carried_out,
            "replanned": self._return(self.replanned),
        }

    def _return(self, track: Track) -> str:
        each = f" of {self.step_length} environment steps" if self.step_length > 1 else ""
        return f"{track.rew.sum():.2f} in {len(track.rew)} steps{each}"


def compare(
    env: str | EnvConfig, agent: Hierarchy, level: PlannerLevel, *, step: int, seed: int, n_particles: int
) -> Comparison:
    """Plan at a step of an episode, predict the outcome, and carry the plan out.

    Where a step of the model is several environment steps, the tracks are those of the model's steps.

    Args:
        env: Id or recipe of the environment.
        agent: Agent that acts until the step, without exploration.
        level: Its only level.
        step: Environment step of the episode.
        seed: Random seed of the episode.
        n_particles: Particles of each member, rounded up to a multiple of the particles of a row.

    Raises:
        ValueError: The episode ends before that step, the agent decides nothing there, or a step of its model is no
            whole number of environment steps.
    """
    duration, repeat = level.duration, level.world.repeat
    if step % duration:
        raise ValueError(f"step is {step}, expected a multiple of {duration}, the environment steps of an action")
    if duration % repeat:
        raise ValueError(f"the level's duration is {duration}, expected a multiple of the {repeat} steps of its model")
    n_steps = step + level.planner.horizon * duration
    whole, moments = play_track(make_vector_env(env), agent, None, n_steps=n_steps, seed=seed)
    if len(whole.act) <= step:
        raise ValueError(f"step is {step}, expected less than {len(whole.act)}, where the episode ends")
    moment = moments[step]
    plan = level.plan(moment.obs, moment.memory, moment.generator).actions
    planned = np.concatenate([whole.act[:step], plan[0].cpu().numpy().repeat(duration, 0)])
    repeated, _ = play_track(make_vector_env(env), agent, planned, n_steps=len(planned), seed=seed)
    # If the plan begins with the action that the agent took, that has to repeat itself, too.
    n_same = step + duration * int(np.array_equal(planned[step], whole.act[step]))
    same = np.array_equal(repeated.obs[: n_same + 1], whole.obs[: n_same + 1])
    with torch.no_grad():
        n = -(-n_particles // level.world.dynamics.n_particles_per_model)
        predicted = level.world.rollout(
            moment.obs.expand(n, -1), plan.expand(n, -1, -1), generator=moment.generator, statistics=False
        )
    length = duration // repeat
    carried_out, replanned = (x.after(step).coarse(length, level.discount) for x in (repeated, whole))
    return Comparison(predicted, carried_out if same else None, replanned, level.planner.horizon * repeat, length)


def draw_comparison(found: Comparison, level: PlannerLevel, title: str) -> Figure:
    """Draw particles by member, the members' means, and the tracks, a panel for each dimension of the state.

    The last panel shows the return. Of many dimensions, such as those of a latent state, the first are drawn.

    Args:
        found: Comparison to draw.
        level: Level whose world model encodes observations.
        title: Title of the figure.
    """
    states = found.predicted.state.transpose(0, 1).flatten(1, 2).cpu().numpy()  # (members, particles, H+1, S)
    gains = (found.predicted.alive * found.predicted.reward).cumsum(-1).transpose(0, 1).flatten(1, 2).cpu().numpy()
    lines = [(found.replanned, GREY, "--", "track, replanned at every step")]
    if found.carried_out is not None:
        lines.append((found.carried_out, "black", ".", "track, plan carried out"))
    n_dims, title = shown_dims(states.shape[-1], title)
    names = [*state_names(level.world.encoder, level.world.task)[:n_dims], "return"]
    figure, panels, _ = panel_grid(n_dims + 1, names, title)
    for i, axes in enumerate(panels):
        is_state = i < n_dims
        for m in range(len(states)):
            particles = states[m, ..., i] if is_state else gains[m]
            x = found.step_length * (
                np.arange(particles.shape[-1]) + (not is_state)
            )  # the first reward follows the first action
            axes.plot(x, particles.T, color=f"C{m % 10}", lw=0.5, alpha=0.25)
            axes.plot(x, particles.mean(0), color=f"C{m % 10}", lw=1.2, label=None if m else "means of members")
        for track, color, style, label in lines:
            y = _states(track, level)[:, i] if is_state else np.cumsum(track.rew)
            y = y[: found.horizon + is_state]
            x = found.step_length * (np.arange(len(y)) + (not is_state))
            axes.plot(x, y, style, color=color, lw=1.2, label=label)
        axes.set_title(names[i], fontsize=9)
        axes.set_xlabel("time ahead (environment steps)", fontsize=8)
        axes.set_ylabel("environment's units" if is_state else "sum of rewards", fontsize=8)
        axes.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    return figure


def _states(track: Track, level: PlannerLevel) -> NDArray[Any]:
    """Return the states of a track, (T+1, S)."""
    state, _ = level.world.encode(torch.as_tensor(track.obs, device=level.device))
    return np.asarray(state.cpu())
