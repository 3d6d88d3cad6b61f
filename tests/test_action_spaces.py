"""Actions as tensors, in the three kinds of spaces."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from layeredrl import action_spaces

BOX = spaces.Box(np.array([-1.0, 0.2], np.float32), np.array([0.5, 70.0], np.float32))
DISCRETE, SHIFTED = spaces.Discrete(4), spaces.Discrete(3, start=-1)
MULTI, SHIFTED_MULTI = spaces.MultiDiscrete([3, 2, 5]), spaces.MultiDiscrete([3, 2], start=[1, -4])
ALL = [BOX, DISCRETE, SHIFTED, MULTI, SHIFTED_MULTI]
in_all_spaces = pytest.mark.parametrize("space", ALL, ids=str)
in_discrete_spaces = pytest.mark.parametrize("space", ALL[1:], ids=str)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def sampled(space, n, seed=0):
    """Actions (n, A) that the space itself drew."""
    space.seed(seed)
    return torch.as_tensor(np.stack([np.atleast_1d(space.sample()) for _ in range(n)]))


@pytest.mark.parametrize(
    ("space", "width", "n_features", "discrete"),
    [
        (BOX, 2, 2, False),
        (DISCRETE, 1, 4, True),
        (SHIFTED, 1, 3, True),
        (MULTI, 3, 10, True),
        (SHIFTED_MULTI, 2, 5, True),
    ],
    ids=str,
)
def test_widths(space, width, n_features, discrete):
    assert action_spaces.width(space) == width
    assert action_spaces.n_features(space) == n_features
    assert action_spaces.is_discrete(space) == discrete
    assert all(type(n) is int for n in (action_spaces.width(space), action_spaces.n_features(space)))


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (DISCRETE, ([4], [0])),
        (SHIFTED, ([3], [-1])),
        (MULTI, ([3, 2, 5], [0, 0, 0])),
        (SHIFTED_MULTI, ([3, 2], [1, -4])),
    ],
    ids=str,
)
def test_choices(space, expected):
    assert action_spaces.choices(space) == expected


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.MultiBinary(3), "action space is MultiBinary.*, expected a Box, Discrete or MultiDiscrete"),
        (spaces.Tuple([DISCRETE, DISCRETE]), "expected a Box, Discrete or MultiDiscrete"),
        (spaces.Box(-1.0, 1.0, (2, 3)), r"shape \(2, 3\), expected one dimension"),
        (spaces.Box(-1.0, 1.0, ()), r"shape \(\), expected one dimension"),
        (spaces.MultiDiscrete([[3, 2], [2, 2]]), r"shape \(2, 2\), expected one dimension"),
    ],
    ids=str,
)
def test_other_spaces_are_refused(space, message):
    with pytest.raises(ValueError, match=message):
        action_spaces.width(space)
    with pytest.raises(ValueError, match=message):
        action_spaces.uniform(space, (1,), seeded())


@in_all_spaces
@pytest.mark.parametrize("lead", [(), (2, 3, 4), (0,)], ids=str)
def test_uniform_actions_are_elements_of_the_space(space, lead):
    draws = action_spaces.uniform(space, lead, seeded())
    assert draws.shape == (*lead, action_spaces.width(space))
    assert draws.dtype == (torch.int64 if action_spaces.is_discrete(space) else torch.float32)
    for action in draws.view(-1, draws.shape[-1]).numpy():
        assert space.contains(action[0] if isinstance(space, spaces.Discrete) else action)


@in_discrete_spaces
def test_every_choice_is_equally_likely(space):
    n = 4_000
    draws = action_spaces.uniform(space, (n,), seeded())
    for i, (n_choices, start) in enumerate(zip(*action_spaces.choices(space), strict=True)):
        share = torch.bincount(draws[:, i] - start, minlength=n_choices) / n
        assert len(share) == n_choices
        standard_error = (1 / n_choices * (1 - 1 / n_choices) / n) ** 0.5
        np.testing.assert_allclose(share.numpy(), 1 / n_choices, rtol=0, atol=4.5 * standard_error)
    if draws.shape[1] > 1:
        correlation = np.corrcoef(draws.numpy().T)
        np.testing.assert_allclose(correlation, np.eye(len(correlation)), atol=5 / n**0.5)


def test_actions_in_a_box_are_uniform():
    n = 5_000
    share = (np.sort(action_spaces.uniform(BOX, (n,), seeded()).double().numpy(), 0) - BOX.low) / (BOX.high - BOX.low)
    distance = np.abs(share - (np.arange(n) + 0.5)[:, None] / n).max(0)
    assert (distance < 2.3 / n**0.5).all()  # Kolmogorov and Smirnov: one in 20,000 exceeds


@pytest.mark.parametrize("largest", [0.0, 1 - 2**-24])
def test_rounding_does_not_leave_a_box(monkeypatch, largest):
    # The first one's width is rounded up.
    low = np.array([-1.0, -0.3, -2.6, 0.1], np.float32)
    high = np.array([7e-8, 0.1, -0.7, 1.1], np.float32)
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.full(shape, largest, dtype=torch.float32))
    assert spaces.Box(low, high).contains(action_spaces.uniform(spaces.Box(low, high), (), seeded()).numpy())


def test_a_box_may_be_a_single_point():
    assert action_spaces.uniform(spaces.Box(0.3, 0.3, (2,)), (5,), seeded()).unique().tolist() == [np.float32(0.3)]


@pytest.mark.parametrize("bounds", [(-np.inf, np.inf), (0.0, np.inf), (-np.inf, 0.0)])
def test_there_is_no_uniform_distribution_without_bounds(bounds):
    with pytest.raises(ValueError, match="expected bounds to draw uniformly between"):
        action_spaces.uniform(spaces.Box(*bounds, (2,)), (5,), seeded())


@in_all_spaces
def test_draws_come_from_the_generator_alone(space):
    state = torch.random.get_rng_state()
    first, again, other = (action_spaces.uniform(space, (20,), seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.random.get_rng_state())


@in_discrete_spaces
def test_features_of_choices_are_one_hot(space):
    drawn = sampled(space, 50)
    features = action_spaces.features(space, drawn)
    assert features.shape == (50, action_spaces.n_features(space))
    assert features.dtype == torch.float32
    for row, action in zip(features.numpy(), drawn.numpy(), strict=True):  # gymnasium flattens to one-hot, too
        np.testing.assert_array_equal(row, spaces.flatten(space, action[0] if len(action) == 1 else action))


def test_features_in_numbers():
    assert action_spaces.features(SHIFTED, torch.tensor([[-1], [1]])).tolist() == [[1, 0, 0], [0, 0, 1]]
    assert action_spaces.features(SHIFTED_MULTI, torch.tensor([3, -4])).tolist() == [0, 0, 1, 1, 0]


@pytest.mark.parametrize("space", [BOX, DISCRETE, SHIFTED], ids=str)
def test_models_take_box_and_discrete_unchanged(space):
    drawn = sampled(space, 5)
    assert action_spaces.model_space(space) == space
    assert action_spaces.for_model(space, drawn) is drawn


@pytest.mark.parametrize("space", [MULTI, SHIFTED_MULTI], ids=str)
def test_models_take_multidiscrete_as_features(space):
    drawn, model_space = sampled(space, 5), action_spaces.model_space(space)
    assert isinstance(model_space, spaces.Box)
    assert action_spaces.width(model_space) == action_spaces.n_features(space)
    converted = action_spaces.for_model(space, drawn)
    assert torch.equal(converted, action_spaces.features(space, drawn))
    assert all(model_space.contains(action) for action in converted.numpy())


@in_all_spaces
@pytest.mark.parametrize("lead", [(), (2, 3), (0,)], ids=str)
def test_features_keep_leading_dimensions(space, lead):
    features = action_spaces.features(space, action_spaces.uniform(space, lead, seeded()))
    assert features.shape == (*lead, action_spaces.n_features(space))
    assert features.dtype == torch.float32


@pytest.mark.parametrize("action", [[4], [-1]])
def test_choices_outside_the_space_have_no_features(action):
    with pytest.raises(RuntimeError):
        action_spaces.features(DISCRETE, torch.tensor(action))
