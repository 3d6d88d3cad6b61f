"""TaskSpec against gymnasium: flattening, units, known functions and refused spaces."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import RescaleAction

from envs.cartpole import reward_function, termination_function
from layeredrl.task import StateDims, TaskSpec
from layeredrl.world_model import Encoder

BOX = spaces.Box(-np.inf, np.inf, (3,), np.float32)
UNIT = spaces.Box(-1.0, 1.0, (2,), np.float32)
# Neither alphabetical nor of equal widths, and of mixed types: whatever the order is, it must be the space's.
DICT = spaces.Dict(
    [
        ("observation", spaces.Box(-9.0, 9.0, (4,), np.float64)),
        ("desired_goal", spaces.Box(-9.0, 9.0, (1,), np.float32)),
        ("achieved_goal", spaces.Box(-9, 9, (2,), np.int32)),
    ]
)


class SpaceEnv(gym.Env):
    """Has spaces and remembers the last action."""

    def __init__(self, observation_space=BOX, action_space=UNIT):
        self.observation_space, self.action_space = observation_space, action_space

    def step(self, action):
        self.action = action
        return self.observation_space.sample(), 0.0, False, False, {}


@pytest.mark.parametrize("space", [BOX, DICT, spaces.Dict(b=BOX, a=UNIT), spaces.Box(0, 255, (3,), np.uint8)])
def test_flatten_and_slices_are_gymnasiums(space):
    task = TaskSpec(space, UNIT, n_envs=5)
    space.seed(0)
    samples = [space.sample() for _ in range(5)]
    batch = gym.vector.utils.concatenate(space, samples, gym.vector.utils.create_empty_array(space, 5))
    flat = task.flatten(batch)
    assert flat.dtype == np.float32
    assert flat.shape == (5, task.observation_dim) == (5, spaces.flatdim(space))
    np.testing.assert_array_equal(flat, np.array([spaces.flatten(space, sample) for sample in samples], np.float32))
    assert sum(part.stop - part.start for part in task.slices.values()) == task.observation_dim
    for key, part in task.slices.items():
        values = batch[key] if isinstance(space, spaces.Dict) else batch
        np.testing.assert_array_equal(flat[:, part], values.astype(np.float32))


def test_slices_by_name():
    assert TaskSpec(BOX, UNIT).slices == {"observation": slice(0, 3)}
    slices = TaskSpec(spaces.Dict([("x", BOX), ("y", UNIT)]), UNIT).slices
    assert slices == {"x": slice(0, 3), "y": slice(3, 5)}
    assert list(slices) == ["x", "y"]


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Discrete(3), r"observation space is Discrete\(3\), expected a flat Box or a Dict of flat Boxes"),
        (spaces.Box(0, 255, (8, 8, 3), np.uint8), r"has shape \(8, 8, 3\), .*FlattenObservation makes it flat"),
        (spaces.Box(0.0, 1.0, ()), r"observation space has shape \(\)"),
        (spaces.Tuple([BOX]), r"observation space is Tuple"),
        (spaces.Dict(a=BOX, b=spaces.Discrete(3)), r"observation space 'b' is Discrete\(3\)"),
        (spaces.Dict(a=BOX, b=spaces.Dict(c=BOX)), r"observation space 'b' is Dict"),
        (spaces.Dict(image=spaces.Box(0.0, 1.0, (4, 4))), r"observation space 'image' has shape \(4, 4\)"),
    ],
)
def test_unsupported_observations_are_named(space, message):
    with pytest.raises(ValueError, match=message):
        TaskSpec(space, UNIT)
    with pytest.raises(ValueError, match=message):
        TaskSpec.from_env(SpaceEnv(space))


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        ([-np.inf] * 2, [np.inf] * 2, r"action space is Box\(-inf, inf, \(2,\), float32\), expected finite bounds"),
        ([-1, -np.inf], [1, 1], "expected finite bounds"),
        ([-1, -1], [np.inf, 1], "expected finite bounds"),
        ([[-1, -1]] * 2, [[1, 1]] * 2, r"action space has shape \(2, 2\), expected one dimension"),
        ([], [], r"action space has shape \(0,\), expected at least one action"),
    ],
)
def test_actions_that_cannot_be_scaled_are_refused(low, high, message):
    with pytest.raises(ValueError, match=message):
        TaskSpec.from_env(SpaceEnv(action_space=spaces.Box(np.float32(low), np.float32(high))))


def test_a_number_of_environments_below_one_is_refused():
    with pytest.raises(ValueError, match="n_envs is 0"):
        TaskSpec(BOX, UNIT, n_envs=0)


def test_units_are_those_of_rescale_action():
    low, high = np.array([-2.0, 0.0, 5.0], np.float32), np.array([2.0, 0.5, 8.0], np.float32)
    env = SpaceEnv(action_space=spaces.Box(low, high))
    task = TaskSpec.from_env(env, n_envs=4)
    assert task.action_space == spaces.Box(-1.0, 1.0, (3,), np.float32)
    assert task.n_envs == 4
    wrapped = RescaleAction(env, np.float32(-1), np.float32(1))
    actions = np.random.default_rng(0).uniform(-1, 1, (50, 3)).astype(np.float32)
    actions[:3] = [[-1] * 3, [0] * 3, [1] * 3]
    scaled = task.to_env_units(torch.from_numpy(actions))
    for action, ours in zip(actions, scaled, strict=True):
        wrapped.step(action)
        np.testing.assert_allclose(ours.numpy(), env.action, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(scaled[0], low)
    np.testing.assert_array_equal(scaled[2], high)
    assert scaled.dtype == torch.float32
    torch.testing.assert_close(task.to_env_units(torch.from_numpy(actions).view(5, 10, 3)), scaled.view(5, 10, 3))
    assert task.to_env_units(torch.zeros(2, 3, dtype=torch.float64)).dtype == torch.float64


def test_actions_without_own_bounds_are_unchanged():
    action = torch.randn(4, 2)
    assert torch.equal(TaskSpec(BOX, UNIT).to_env_units(action), action)
    task = TaskSpec.from_env(SpaceEnv(action_space=spaces.Discrete(3)))
    assert task.action_space == spaces.Discrete(3)
    choice = torch.tensor([[2]])
    assert torch.equal(task.to_env_units(choice), choice)


def test_known_functions_are_read_from_the_environment():
    task = TaskSpec.from_env(gym.make("ContinuousCartPole-v0"), n_envs=2)  # behind gymnasium's wrappers
    assert task.reward is reward_function
    assert task.termination is termination_function
    unknown = TaskSpec.from_env(gym.make("Pendulum-v1"))
    assert unknown.reward is None
    assert unknown.termination is None


class Mistaken(SpaceEnv):
    """Its function lacks `self` and is no staticmethod."""

    def termination_function(state, context, action, next_state):
        return state[..., 0] > 1


class Knowing(SpaceEnv):
    """Its function is a method."""

    def reward_function(self, state, context, action, next_state):
        return next_state[..., 0]


def test_functions_with_other_arguments_are_named_at_once():
    expected = (
        r"termination_function takes \(context, action, next_state\), expected \(state, context, action, next_state\)"
    )
    with pytest.raises(ValueError, match=expected):
        TaskSpec.from_env(Mistaken())
    assert TaskSpec.from_env(Knowing()).reward is not None


class Walker(SpaceEnv):
    """Has special dimensions among its seven, of which 4 is the goal."""

    angle_dims = (5, 1)
    unseen_dims = np.array([0])
    absolute_dims = [0, 6]  # noqa: RUF012
    alike_dims = [(2, 3), (6,)]  # noqa: RUF012


def test_special_dimensions_are_read_from_the_environment():
    task = TaskSpec.from_env(Walker(DICT))
    assert task.dims == StateDims((5, 1), (0,), (0, 6), ((2, 3), (6,)))
    assert task.coarse(UNIT, 5).dims == task.dims
    assert TaskSpec.from_env(SpaceEnv(DICT)).dims == StateDims()


def test_special_dimensions_are_those_of_the_encoded_state():
    task = TaskSpec.from_env(Walker(DICT))
    whole, part = Encoder(task), Encoder(task, ("achieved_goal",))
    assert whole.state_index.tolist() == [0, 1, 2, 3, 5, 6]
    assert task.dims.among(whole.state_index.tolist()) == StateDims((4, 1), (0,), (0, 5), ((2, 3),))
    assert task.dims.among(part.state_index.tolist()) == StateDims((0,), (), (1,))


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"angle_dims": (7,)}, r"angle_dims is \(7,\), expected different numbers from 0 to 6"),
        ({"unseen_dims": (-1,)}, r"unseen_dims is \(-1,\), expected different numbers from 0 to 6"),
        ({"absolute_dims": (2, 2)}, r"absolute_dims is \(2, 2\), expected different numbers"),
        ({"angle_dims": (4,)}, r"angle_dims is \(4,\), but 4 to 4 are the goal's"),
        ({"angle_dims": (1, 2), "unseen_dims": (2,)}, r"angle_dims and unseen_dims both hold \[2\]"),
        ({"alike_dims": ((2, 7),)}, r"alike_dims is \(2, 7\), expected different numbers from 0 to 6"),
        ({"alike_dims": ((2, 3), (3,))}, r"alike_dims is \(2, 3, 3\), expected different numbers"),
        (
            {"alike_dims": ((2, 3),), "absolute_dims": (2,)},
            r"alike_dims holds \(2, 3\), of which absolute_dims has some",
        ),
        ({"alike_dims": (2, 3)}, r"alike_dims is \(2, 3\), expected groups of integers"),
        (
            {"alike_dims": ((1, 2),), "angle_dims": (1,)},
            r"alike_dims holds \[1\], expected dimensions that are neither",
        ),
        ({"angle_dims": 1}, "angle_dims is 1, expected integers"),
        ({"absolute_dims": (0.5,)}, r"absolute_dims is \(0.5,\), expected integers"),
    ],
)
def test_wrong_special_dimensions_are_named(attributes, message):
    env = SpaceEnv(DICT)
    vars(env).update(attributes)
    with pytest.raises((ValueError, TypeError), match=message):
        TaskSpec.from_env(env)


def test_a_higher_level_gets_the_final_reward_times_the_duration_of_its_actions():
    def reward(state, context, action, next_state):
        assert action.shape == (*state.shape[:-1], 2)
        return (next_state - context).sum(-1) - action.abs().sum(-1)

    def termination(state, context, action, next_state):
        return next_state[..., 0] > 1

    skills = spaces.Discrete(4)
    task = TaskSpec(BOX, UNIT, 3, reward, termination, action_low=np.full(2, -3.0), action_high=np.full(2, 3.0))
    coarse = task.coarse(skills, 5)
    assert (coarse.action_space, coarse.n_envs, coarse.observation_space) == (skills, 3, BOX)
    state, context, after = torch.zeros(2, 3), torch.ones(2, 3), torch.tensor([[1.0, 2.0, 3.0], [2.0, 2.0, 2.0]])
    choice = coarse.to_env_units(torch.tensor([[1], [3]]))
    torch.testing.assert_close(coarse.reward(state, context, choice, after), 5 * torch.tensor([3.0, 3.0]))
    assert coarse.termination(state, context, choice, after).tolist() == [False, True]
    unknown = task.coarse(skills, 5, known=False)
    assert unknown.reward is None
    assert unknown.termination is None
    assert task.reward is reward
