"""What a run's agent expects, and what then happens: `python -m experiments.plot_plan runs/NAME --step 50`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import tyro
from gymnasium.vector import VectorEnv
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tianshou.data import Batch
from torch import Tensor

from experiments.evaluate import EvaluateConfig, load
from experiments.run.command_line import command_line, fail
from layeredrl.action_spaces import to_env
from layeredrl.checks import require_counts
from layeredrl.environments import make_vector_env
from layeredrl.faults import Fault
from layeredrl.hierarchy import Hierarchy
from layeredrl.levels import PlannerLevel
from layeredrl.loggers import closing_table
from layeredrl.models.diagnostics.figures import GREY, panel_grid


@dataclass(frozen=True)
class PlotPlanConfig:
    """Draw the particles that a plan was chosen by over what really happens when it is carried out."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    step: int = 0
    """Environment step of the episode at which to look at the plan."""
    seed: int = 1_000_000
    """Of the episode."""
    particles: int = 20
    """Particles of each member, rounded up to a multiple of what the model follows for each row."""
    output: Path | None = None
    """Where the figure goes; plan.png in the run's folder by default."""
    device: str | None = None
    """Where the agent computes; where it was trained by default."""

    def __post_init__(self) -> None:
        require_counts(self, step=0, seed=0, particles=1)


@dataclass(frozen=True)
class Track:
    """What happened in an episode, from some step on."""

    obs: NDArray[np.float32]
    """Observations, the first one before the first of these steps, (T+1, O)."""
    act: NDArray[Any]
    """Actions, (T, A)."""
    rew: NDArray[np.float64]
    """Rewards, (T,)."""

    def after(self, step: int) -> "Track":
        """The part from a later step on."""
        return Track(self.obs[step:], self.act[step:], self.rew[step:])


class Moment(NamedTuple):
    """What an agent decides from."""

    obs: Tensor
    """(1, O)."""
    memory: Batch
    """Of its top level."""
    generator: torch.Generator


def play(
    env: VectorEnv[Any, Any, Any], agent: Hierarchy, actions: NDArray[Any] | None, *, n_steps: int, seed: int
) -> tuple[Track, list[Moment]]:
    """Play an episode, which ends where the environment ends it.

    Args:
        env: One environment; closed at the end.
        agent: Acts without exploration, if no actions are given.
        actions: To be taken instead, (n_steps, A).
        n_steps: At the most.
        seed: Of the environment and of acting.

    Returns:
        What happened, and what the agent decided from at every step.
    """
    carry = agent.initial_carry(1, seed)
    raw, _ = env.reset(seed=seed)
    seen, taken, rewards, moments = [agent.task.flatten(raw)], [], [], []
    try:
        for t in range(n_steps):
            obs = torch.as_tensor(seen[-1], device=agent.device)
            moments.append(Moment(obs, carry.levels[0].memory, carry.generator.clone_state()))
            act = agent.act(seen[-1], carry, explore=False) if actions is None else actions[None, t]
            raw, reward, terminated, truncated, _ = env.step(to_env(agent.task.action_space, act))
            seen.append(agent.task.flatten(raw))
            taken.append(act[0])
            rewards.append(float(reward[0]))
            step = Batch(rew=reward, terminated=terminated, truncated=truncated, obs_next=seen[-1])
            agent.observe(step, np.arange(1), carry, learn=False)
            if terminated[0] or truncated[0]:
                break
    finally:
        env.close()
    return Track(np.concatenate(seen), np.array(taken), np.array(rewards)), moments


@dataclass(frozen=True)
class Comparison:
    """A plan, what it promised, and what came of it."""

    predicted: Batch
    """From `WorldModel.rollout` for copies of the same plan, (particles, ...)."""
    carried_out: Track | None
    """The plan's own actions, one after the other; None where the environment does not repeat itself."""
    replanned: Track
    """The agent as it acts, with a new plan at every step."""
    horizon: int


def compare(env_id: str, agent: Hierarchy, level: PlannerLevel, args: PlotPlanConfig) -> Comparison:
    """Plan at a step of an episode, and see what happens.

    Raises:
        ValueError: The episode ends before that step.
    """
    horizon = level.planner.horizon
    whole, moments = play(make_vector_env(env_id), agent, None, n_steps=args.step + horizon, seed=args.seed)
    if len(whole.act) <= args.step:
        raise ValueError(f"step is {args.step}, expected less than {len(whole.act)}, where the episode ends")
    moment = moments[args.step]
    plan = level.plan(moment.obs, moment.memory, moment.generator).actions
    planned = np.concatenate([whole.act[: args.step], plan[0].cpu().numpy()])
    repeated, _ = play(make_vector_env(env_id), agent, planned, n_steps=len(planned), seed=args.seed)
    # The agent's plan begins with what the agent did, so that one more step has to repeat itself too.
    n_same = args.step + int(np.array_equal(planned[args.step], whole.act[args.step]))
    same = np.array_equal(repeated.obs[: n_same + 1], whole.obs[: n_same + 1])
    with torch.no_grad():
        n = -(-args.particles // level.world.dynamics.n_particles_per_model)
        predicted = level.world.rollout(
            moment.obs.expand(n, -1), plan.expand(n, -1, -1), generator=moment.generator, statistics=False
        )
    carried_out = repeated.after(args.step) if same else None
    return Comparison(predicted, carried_out, whole.after(args.step), horizon)


def draw(found: Comparison, level: PlannerLevel, title: str) -> Figure:
    """Particles by member, their members' means, and what happened, for each dimension of the state and the return.

    Args:
        found: What to draw.
        level: Its encoder tells the state from observations.
        title: Above the picture.
    """
    states = found.predicted.state.transpose(0, 1).flatten(1, 2).cpu().numpy()  # (members, particles, H+1, S)
    gains = (found.predicted.alive * found.predicted.reward).cumsum(-1).transpose(0, 1).flatten(1, 2).cpu().numpy()
    lines = [(found.replanned, GREY, "--", "what happened, replanned at every step")]
    if found.carried_out is not None:
        lines.append((found.carried_out, "black", ".", "what happened, the plan carried out"))
    n_dims = states.shape[-1]
    figure, panels, names = panel_grid(n_dims + 1, [*(f"state {i}" for i in range(n_dims)), "return so far"], title)
    for i, axes in enumerate(panels):
        for m in range(len(states)):
            fan, steps = (states[m, ..., i], 0) if i < n_dims else (gains[m], 1)
            x = np.arange(fan.shape[-1]) + steps
            axes.plot(x, fan.T, color=f"C{m % 10}", lw=0.5, alpha=0.25)
            axes.plot(x, fan.mean(0), color=f"C{m % 10}", lw=1.2, label="members" if m == 0 else None)
        for track, color, style, label in lines:
            y = _states(track, level)[:, i] if i < n_dims else np.cumsum(track.rew)
            y = y[: found.horizon + (i < n_dims)]
            axes.plot(np.arange(len(y)) + (i == n_dims), y, style, color=color, lw=1.2, label=label)
        axes.set_title(names[i], fontsize=9)
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize=6)
    figure.supxlabel("steps ahead", fontsize=9)
    return figure


def _states(track: Track, level: PlannerLevel) -> NDArray[Any]:
    state, _ = level.world.encode(torch.as_tensor(track.obs, device=level.device))
    return np.asarray(state.cpu())


def main() -> None:
    """Load, play, draw, tell."""
    try:
        args = command_line(PlotPlanConfig, sys.argv[1:], prog="python -m experiments.plot_plan")
        config, agent, _ = load(EvaluateConfig(args.run, device=args.device))
        level = agent.levels[0]
        if not isinstance(level, PlannerLevel) or len(agent.levels) != 1:
            raise ValueError(f"{args.run} holds {config.agent}, which does not plan the environment's own actions")
        found = compare(config.env, agent, level, args)
    except (ValueError, TypeError, Fault) as error:
        fail(error)
    returns = (found.predicted.alive * found.predicted.reward).sum(-1)
    rows = {
        "predicted return": f"{float(returns.mean()):.2f} ± {float(returns.std(correction=0)):.2f} over particles",
        "members' means": ", ".join(f"{x:.2f}" for x in returns.mean((0, 2)).tolist()),
        "plan carried out": "not comparable: the environment does not repeat itself"
        if found.carried_out is None
        else f"{found.carried_out.rew.sum():.2f} in {len(found.carried_out.rew)} steps",
        "replanned": f"{found.replanned.rew.sum():.2f} in {len(found.replanned.rew)} steps",
    }
    path = args.output or args.run / "plan.png"
    title = f"{config.agent} on {config.env}: the plan at step {args.step}, {found.horizon} steps ahead"
    draw(found, level, title).savefig(path, dpi=120)
    closing_table({**rows, "figure": str(path)}, title="Plan")


if __name__ == "__main__":
    main()
