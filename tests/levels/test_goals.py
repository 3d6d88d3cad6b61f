"""Commands that are goals, and hindsight, against plain loops over the stored transitions."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tianshou.data import Batch

from layeredrl.levels.goals import GoalCommands, Hindsight
from layeredrl.storage import Replay
from layeredrl.task import TaskSpec

PLANE = spaces.Box(-9.0, 9.0, (2,), np.float32)
TASK = TaskSpec(
    spaces.Dict(achieved_goal=PLANE, desired_goal=PLANE, observation=spaces.Box(-9.0, 9.0, (3,), np.float32)),
    spaces.Box(-1.0, 1.0, (1,), np.float32),
)
GOALS = GoalCommands(TASK, radius=2.0, duration=4)


def command(action, start, elapsed=0, remaining=4):
    """A command given at places `start` (n, 2)."""
    obs = torch.zeros(len(start), 7)
    obs[:, :2] = torch.tensor(start)
    counts = {name: torch.full((len(start),), n) for name, n in (("elapsed", elapsed), ("remaining", remaining))}
    return Batch(action=torch.tensor(action), obs=obs, **counts)


def test_a_command_is_a_displacement_from_its_first_observation():
    given = command([[0.5, -1.0]], [[3.0, 4.0]])
    torch.testing.assert_close(GOALS.goal(given), torch.tensor([[4.0, 2.0]]))
    torch.testing.assert_close(GOALS.action(given, torch.tensor([[4.0, 2.0]])), given.action)


def test_policy_inputs_hold_the_displacement_to_the_goal_and_the_remaining_share_but_not_the_task_s_goal():
    given = command([[0.5, -1.0]], [[3.0, 4.0]], elapsed=3, remaining=1)
    obs = torch.tensor([[3.5, 3.0, 8.0, 8.0, 0.1, 0.2, 0.3]])
    expected = [3.5, 3.0, 0.1, 0.2, 0.3, (4.0 - 3.5) / 2, (2.0 - 3.0) / 2, 1 / 4]
    torch.testing.assert_close(GOALS.inputs(obs, given), torch.tensor([expected]))
    assert GOALS.n_inputs == len(expected)


def test_goal_commands_need_an_achieved_goal():
    with pytest.raises(ValueError, match=r"parts observation, expected an achieved_goal"):
        GoalCommands(TaskSpec(PLANE, PLANE), 1.0, 1)
    with pytest.raises(ValueError, match="radius is 0"):
        GoalCommands(TASK, 0, 1)


def walk(n_envs=2, n_steps=60, seed=0):
    """A replay of random walks under commands of four steps; episodes end at odd moments."""
    rng = np.random.default_rng(seed)
    replay = Replay(20 * n_envs, n_envs)  # the oldest are overwritten
    obs = rng.normal(size=(n_envs, 7)).astype(np.float32)
    start, action, elapsed = obs.copy(), rng.uniform(-1, 1, (n_envs, 2)).astype(np.float32), np.zeros(n_envs, np.int64)
    kept = [[] for _ in range(n_envs)]
    for _ in range(n_steps):
        obs_next = (obs + 0.1 * rng.normal(size=obs.shape)).astype(np.float32)
        done = rng.random(n_envs) < 0.15
        given = Batch(action=action.copy(), obs=start.copy(), elapsed=elapsed.copy(), remaining=4 - elapsed)
        info = Batch(duration=np.ones(n_envs, np.int64), command=given)
        flags = {"terminated": done & (rng.random(n_envs) < 0.5)}
        flags["truncated"] = done & ~flags["terminated"]
        act = rng.uniform(-1, 1, (n_envs, 1)).astype(np.float32)
        replay.add(
            Batch(obs=obs, act=act, rew=np.ones(n_envs), obs_next=obs_next, info=info, **flags), np.arange(n_envs)
        )
        for i in range(n_envs):
            kept[i].append((obs_next[i], bool(done[i]), int(elapsed[i])))
        elapsed = np.where(done, 0, (elapsed + 1) % 4)
        obs = np.where(done[:, None], rng.normal(size=obs.shape), obs_next).astype(np.float32)
        start = np.where((elapsed == 0)[:, None], obs, start)
        action = np.where((elapsed == 0)[:, None], rng.uniform(-1, 1, action.shape), action).astype(np.float32)
    return replay, kept


def sampled(replay, n=400):
    """A batch as `PolicyLevel.sample` returns it."""
    rows, index = replay.sample(n)
    rows.to_torch_()
    given = rows.info.command
    following = Batch(action=given.action, obs=given.obs, elapsed=given.elapsed + 1, remaining=given.remaining - 1)
    return Batch(
        obs=rows.obs,
        obs_next=rows.obs_next,
        act=rows.act,
        rew=rows.rew.float(),
        discount=0.9 * (~rows.terminated).float(),
        duration=rows.info.duration,
        index=index,
        command=given,
        next_command=following,
    )


def test_hindsight_gives_goals_that_were_reached_under_the_same_command():
    replay, kept = walk()
    torch.manual_seed(0)
    batch = Hindsight(GOALS, share=1.0)(sampled(replay), replay)
    goals = GOALS.goal(batch.command).numpy()
    n_ahead = []
    for row, index in enumerate(batch.index):
        env, slot = divmod(int(index), 20)
        # The newest step of the walk at this index.
        step = max(t for t in range(len(kept[env])) if t % 20 == slot)
        candidates = []
        for t in range(step, len(kept[env])):
            reached, done, elapsed = kept[env][t]
            candidates.append(reached[:2])
            if done or elapsed == 3:
                break
        distances = [np.abs(goals[row] - c).max() for c in candidates]
        assert min(distances) < 1e-5
        n_ahead.append((int(np.argmin(distances)), len(candidates)))
    # Later goals are drawn as often as the first.
    for length in (2, 3, 4):
        counts = np.bincount([k for k, n in n_ahead if n == length], minlength=length)
        assert counts.min() > 0.5 * counts.mean()


@pytest.mark.parametrize("reward", ["distance", "progress", "sparse"])
def test_rewards_are_those_of_the_new_goal(reward):
    replay, _ = walk()
    torch.manual_seed(1)
    batch = Hindsight(GOALS, share=0.5, reward=reward, tolerance=0.3)(sampled(replay), replay)
    goal = GOALS.goal(batch.command).numpy()
    for i in range(len(goal)):
        before, after = (np.linalg.norm(batch[k][i, :2].numpy() - goal[i]) for k in ("obs", "obs_next"))
        expected = {"distance": -after / 2, "progress": (before - after) / 2, "sparse": -float(after > 0.3)}[reward]
        assert batch.rew[i] == pytest.approx(expected, abs=1e-5)


def test_without_hindsight_commands_keep_their_goal_and_their_end():
    replay, _ = walk()
    batch = sampled(replay)
    action, remaining, discount = (x.clone() for x in (batch.command.action, batch.command.remaining, batch.discount))
    batch = Hindsight(GOALS, share=0.0)(batch, replay)
    torch.testing.assert_close(batch.command.action, action)
    torch.testing.assert_close(batch.next_command.action, action)
    assert 0 < (remaining == 1).sum() < len(remaining)
    torch.testing.assert_close(batch.discount, torch.where(remaining == 1, 0.0, discount))


def test_a_share_of_the_transitions_gets_another_goal():
    replay, _ = walk()
    batch = sampled(replay, 2000)
    action = batch.command.action.clone()
    changed = (Hindsight(GOALS, share=0.3)(batch, replay).command.action - action).abs().amax(1) > 1e-6
    assert changed.float().mean() == pytest.approx(0.3, abs=0.04)
