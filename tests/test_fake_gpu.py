"""Agents on a GPU that is not there: nothing is on a wrong device, and values are those of the CPU.

Each recipe is built, acts, observes, learns, is saved and restored.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import envs  # noqa: F401  registers the tasks
from agents.dads import DADSAgent
from agents.diayn import DIAYNAgent
from agents.goals import Goals
from agents.loop import LOOP
from agents.mbpo import MBPO
from agents.pets import PETS
from agents.sac import SAC
from agents.splates import SPlaTESAgent
from agents.splates_goals import SPlaTESOverGoalsAgent
from agents.tdmpc2 import TDMPC2
from layeredrl.collector import Collector
from layeredrl.environments import make_task, make_vector_env
from layeredrl.hierarchy import Hierarchy
from layeredrl.levels import LatentLevel, PlannerLevel, PolicyLevel
from layeredrl.planners import CEMConfig, ICEMConfig, MPPIConfig, PlannerConfig, RandomShootingConfig
from layeredrl.randomness import globals_state, restore_globals, seed_globals
from layeredrl.skills import SkillLevel
from layeredrl.storage import Checkpoints
from layeredrl.world_model import ImaginationConfig, LatentConfig
from tests.fake_gpu import CUDA, FakeGPU

CPU = torch.device("cpu")
CARTPOLE, MAZE = "ContinuousCartPole-v0", "Maze2D-Simple-v0"
TINY_LATENT = LatentConfig.of("tiny", latent_dim=16, encoder_hidden=(16,), hidden=(16,), terminations=True)
TDMPC2_DEBUG = TDMPC2.preset("debug", latent=TINY_LATENT)
PETS_DEBUG, SPLATES_DEBUG = PETS.preset("debug"), SPlaTESAgent.preset("debug")


def planning(**settings: Any) -> PETS:
    (kind,) = settings
    return replace(PETS_DEBUG, planner=PlannerConfig(kind, **settings))


RECIPES: dict[str, tuple[Any, str]] = {
    "pets": (PETS_DEBUG, CARTPOLE),
    "pets, cem": (
        planning(cem=CEMConfig(horizon=3, n_samples=8, n_elites=3, n_iterations=2, stop_variance=0.0)),
        CARTPOLE,
    ),
    "pets, mppi": (planning(mppi=MPPIConfig(horizon=3, n_samples=8, n_iterations=2)), CARTPOLE),
    "pets, random shooting": (planning(random_shooting=RandomShootingConfig(horizon=3, n_samples=8)), CARTPOLE),
    "pets, discrete, learned": (
        planning(icem=ICEMConfig(horizon=3, n_samples=8, n_iterations=2, n_elites=3)),
        "CartPole-v1",
    ),
    "pets, value and doubt": (
        replace(
            PETS_DEBUG,
            value=True,
            common_noise=True,
            discount=0.9,
            uncertainty_weight=0.1,
            support_weight=0.1,
            support_dims=(0, 1),
        ),
        CARTPOLE,
    ),
    "sac": (SAC.preset("debug"), "Pendulum-v1"),
    "td3": (replace(SAC.preset("debug"), algorithm="td3"), "Pendulum-v1"),
    "mbpo": (MBPO.preset("debug"), "Pendulum-v1"),
    "mbpo, macura": (
        replace(MBPO.preset("debug"), imagination=ImaginationConfig(n_branches=20, n_steps=(2, 2), bound="macura")),
        "Pendulum-v1",
    ),
    "loop": (LOOP.preset("debug"), "Pendulum-v1"),
    "tdmpc2": (TDMPC2_DEBUG, CARTPOLE),
    "splates": (SPLATES_DEBUG, MAZE),
    "splates, discrete, learned": (replace(SPLATES_DEBUG, n_skills=3, state=("observation",)), MAZE),
    "dads": (replace(DADSAgent.preset("debug"), importance_clip=10.0), MAZE),
    "diayn": (DIAYNAgent.preset("debug"), MAZE),
    "goals": (Goals.preset("debug"), MAZE),
    "splates over goals": (SPlaTESOverGoalsAgent.preset("debug"), MAZE),
}
N_STEPS, N_MORE = 15, 2


def build(config: Any, env_id: str, device: torch.device) -> tuple[Hierarchy, Collector]:
    seed_globals(0)
    agent = config.build(make_task(env_id, 2), device, seed=0)
    return agent, Collector(make_vector_env(env_id, 2), agent, seed=0)


def steps(agent: Hierarchy, collector: Collector, n: int) -> np.ndarray:
    """Actions (n, E, A)."""
    actions = []
    for _ in range(n):
        collector.step(explore=True)
        actions.append(collector._carry.levels[-1].action.copy())
        agent.learn(collector.n_total_env_steps)
    return np.array(actions)


def state_of(agent: Hierarchy, collector: Collector) -> dict[str, Any]:
    return {
        "agent": agent.state_dict(),
        "experience": agent.experience(),
        "collector": collector.state_dict(),
        "globals": globals_state(),
    }


SLOW = ("splates, discrete, learned", "splates over goals", "dads")
"""Their parts are those of the other recipes."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in RECIPES]
)
def test_a_recipe_on_the_gpu_does_what_it_does_on_the_cpu_within_budgets(name: str, tmp_path: Path) -> None:
    config, env_id = RECIPES[name]
    expected = steps(*build(config, env_id, CPU), N_STEPS + N_MORE)
    with FakeGPU() as gpu:
        agent, collector = build(config, env_id, CUDA)
        np.testing.assert_allclose(steps(agent, collector, N_STEPS), expected[:N_STEPS], rtol=1e-4, atol=1e-4)
        Checkpoints(tmp_path).save(state_of(agent, collector), collector.n_total_env_steps)

        agent, collector = build(config, env_id, CUDA)
        state = Checkpoints(tmp_path).load(CUDA)
        agent.load_state_dict(state["agent"])
        agent.load_experience(state["experience"])
        collector.load_state_dict(state["collector"])
        restore_globals(state["globals"])
        np.testing.assert_allclose(steps(agent, collector, N_MORE), expected[N_STEPS:], rtol=1e-4, atol=1e-4)

        require_few_waits_of_decisions(gpu, agent, collector, corrected=name == "dads")
        for level in agent.levels:
            if isinstance(level, PolicyLevel):
                relabels = "goals" in name and not isinstance(level, SkillLevel)
                require_no_waits_of_policy_updates(gpu, level, n_copies=2 if relabels else 1)
            if isinstance(level, SkillLevel) and name in ("splates", "dads"):
                require_few_waits_of_model_updates(gpu, level, collector.n_total_env_steps)
            elif isinstance(level, LatentLevel):
                require_no_waits_of_latent_updates(gpu, level)


def require_few_waits_of_decisions(gpu: FakeGPU, agent: Hierarchy, collector: Collector, *, corrected: bool) -> None:
    """At most three waits if a level plans, else one, and one copy of all arrays, whatever the number of levels.

    Where the choice of skills is corrected for, actions are weighed by their probability: a wait and a copy more.
    """
    most = 3 if any(isinstance(level, PlannerLevel) for level in agent.levels) else 1
    counts = []
    for explore in (True,) * 3 + (False,) * 2:
        if not explore:  # candidates are as many again
            agent.act(collector._obs, agent.initial_carry(2, 0), explore=False)
        with gpu.counting() as events:
            ended = collector.step(explore=explore)
        counts.append(sum("stacked/graphs.py" not in event for event in events.syncs))  # captures happen once
        assert counts[-1] <= most + corrected, str(events)
        assert len(events.copies) <= 1 + bool(ended) + corrected, str(events)  # also which episodes ended
    assert min(counts) == 1 + corrected if len(agent.levels) > 1 else min(counts) >= 1  # the actions


def require_no_waits_of_policy_updates(gpu: FakeGPU, level: PolicyLevel, *, n_copies: int) -> None:
    """None waits, nor does a report need more than one copy of all its losses.

    Batches are copied from a replay in memory, and so are the goals of hindsight.
    """
    before = level.n_updates
    with gpu.counting() as events:
        for _ in range(3):
            level._updates(2)
    assert level.n_updates == before + 6
    assert events.syncs == []
    assert len(events.copies) == 3 * n_copies, str(events)
    with gpu.counting() as events:
        level._settle()
        metrics = level._means.take()
    assert len(events.syncs) == 1, str(events)
    assert {"critic1_loss", "actor_loss", "reward"} <= metrics.keys()


def require_no_waits_of_latent_updates(gpu: FakeGPU, level: LatentLevel) -> None:
    """None waits, and each takes one copy."""
    with gpu.counting() as events:
        for _ in range(3):
            level.latent.update(level.sample())
    assert events.syncs == []
    assert len(events.copies) == 3, str(events)


def require_few_waits_of_model_updates(gpu: FakeGPU, level: SkillLevel, n_total_env_steps: int) -> None:
    """No update waits but every tenth, in which the eigenvectors of the displacements are found."""
    learner = level.method.learner
    learner.config = replace(learner.config, report_every=10**6, refresh_every=10**6)
    level.method.learn(level.replay, n_total_env_steps, level.log_prob)  # of the steps that were only acted
    before = learner.n_updates
    with gpu.counting() as events:
        level.method.learn(level.replay, n_total_env_steps + 20, level.log_prob)
    assert learner.n_updates == before + 10
    assert len(events.syncs) == 1, str(events)
    assert all("_linalg_eigh" in event for event in events.syncs)
    assert len(events.copies) <= 10, str(events)


def test_mixed_devices_are_an_error() -> None:
    with FakeGPU():
        x = torch.zeros(3, device=CUDA)
        for use in (
            lambda: x + torch.zeros(3),
            lambda: nn.Linear(3, 2)(x),
            lambda: torch.cat([x, torch.zeros(1)]),
            lambda: torch.rand(2, generator=torch.Generator(), device=CUDA),
            lambda: torch.rand(2, generator=torch.Generator(CUDA)),
            lambda: torch.zeros(3)[torch.zeros(1, dtype=torch.int64, device=CUDA)],
        ):
            with pytest.raises(RuntimeError, match=r"same device|device type"):
                use()
        with pytest.raises(TypeError, match="can't convert cuda:0"):
            np.asarray(x)
        assert (x + torch.tensor(2.0)).tolist() == [2.0] * 3  # a scalar may be anywhere


def test_waits_and_copies_are_counted_with_their_lines() -> None:
    looks = (
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: float(x[0]),
        lambda x: int(x[0]),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.to("cpu"),
        lambda x: (x > 0).nonzero(),
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: x.unique(),
        lambda x: torch.equal(x, x),
        lambda x: torch.zeros(3).copy_(x),
        lambda x: x.repeat_interleave(x.long()),
        lambda x: torch.linalg.eigh(torch.diag(x)),
        lambda x: x.__setitem__(x > 1, 0.0),
    )
    copies = (
        lambda x: torch.as_tensor(np.zeros(3), device=CUDA),
        lambda x: torch.tensor([1.0, 2.0], device=CUDA),
        lambda x: x[[0, 1]],
        lambda x: x[torch.tensor([0, 1])],
        lambda x: x.copy_(torch.zeros(3)),
        lambda x: nn.Linear(2, 1, bias=False).to(CUDA),
    )
    nothing = (
        lambda x: torch.where(x > 0, x, 0.0).sum().clamp(max=2.0),
        lambda x: torch.zeros(3, device=CUDA) + torch.arange(3, device=CUDA),
        lambda x: x[1:] * 2,
        lambda x: x.add_(1),
        lambda x: x.masked_fill_(x > 0, 1.0),
        lambda x: x.repeat_interleave(2),
    )
    with FakeGPU() as gpu:
        for n_looks, n_copies, cases in ((1, 0, looks), (0, 1, copies), (0, 0, nothing)):
            for case in cases:
                x = torch.arange(3.0, device=CUDA)
                with gpu.counting() as events:
                    case(x)
                line = f"tests/test_fake_gpu.py:{case.__code__.co_firstlineno} "
                assert (len(events.syncs), len(events.copies)) == (n_looks, n_copies), f"{line}: {events}"
                assert all(event.startswith(line) for event in events.syncs + events.copies)


def test_a_capture_must_not_wait() -> None:
    with FakeGPU() as gpu:
        x = torch.zeros(3, device=CUDA)
        with pytest.raises(RuntimeError, match=r"not permitted .* tests/test_fake_gpu.py"):
            gpu.capture(lambda: (x * float(x[0]),))
        replay, (output,) = gpu.capture(lambda: (x + 1,))
        x += 2
        replay()
        assert output.tolist() == [3.0] * 3


def test_gradients_and_steps_are_those_of_the_cpu() -> None:
    def trained(device: torch.device) -> Tensor:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).to(device)
        optimizer = torch.optim.Adam(net.parameters(), lr=0.1, fused=True)
        for _ in range(3):
            optimizer.zero_grad()
            net(torch.ones(5, 3, device=device)).square().mean().backward()
            optimizer.step()
        return net[0].weight.detach().cpu()

    expected = trained(CPU)
    with FakeGPU():
        torch.testing.assert_close(trained(CUDA), expected)


def test_budget_of_a_fit() -> None:
    """Steps do not wait: an epoch does twice, and what else there is does not depend on the number of steps."""
    counts = []
    with FakeGPU() as gpu:
        for batch_size in (64, 4):
            fit = replace(PETS_DEBUG.learning.fit, batch_size=batch_size)
            config = replace(PETS_DEBUG, learning=replace(PETS_DEBUG.learning, fit=fit))
            agent, collector = build(config, CARTPOLE, CUDA)
            steps(agent, collector, 14)
            (level,) = agent.levels
            level.learner.last_fit = 0
            with gpu.counting() as events:
                level.learn(collector.n_total_env_steps)
            counts.append(len(events.syncs))
    assert counts[0] == counts[1] <= 12
