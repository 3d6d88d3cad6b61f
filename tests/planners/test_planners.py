"""The contract of planners. A planner joins by one line in PLANNERS."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tianshou.data import Batch

from layeredrl.planners import (
    CEM,
    ICEM,
    MPPI,
    CEMConfig,
    ICEMConfig,
    MPPIConfig,
    PlanningError,
    RandomShooting,
    RandomShootingConfig,
)
from layeredrl.planners.planner import best_first, evaluate, shift

PLANNERS = [
    (ICEM, ICEMConfig),
    (CEM, CEMConfig),
    (MPPI, MPPIConfig),
    (RandomShooting, RandomShootingConfig),
]

CPU = torch.device("cpu")
H, A = 5, 2
SMALL = {
    "horizon": H,
    "n_samples": 32,
    "n_iterations": 4,
    "n_elites": 6,
    "stop_variance": 0.0,
    "adapt_std": True,
    "min_std": 0.0,
    "temperature": 2.0,
}
SPACE = spaces.Box(-1.0, 1.0, (A,))
# Bounds whose averages do not round to the bounds themselves.
ODD_SPACE = spaces.Box(np.array([-0.3, 0.1, -2.6], np.float32), np.array([0.1, 1.1, -0.7], np.float32))


@pytest.fixture(params=PLANNERS, ids=lambda pair: pair[0].__name__)
def kind(request):
    return request.param


@pytest.fixture
def make(kind):
    """Builds a planner; settings that it does not have are left out."""
    planner, config = kind
    known = {field.name for field in fields(config)}

    def build(space=SPACE, **settings):
        return planner(space, config(**{key: value for key, value in (SMALL | settings).items() if key in known}))

    return build


@pytest.fixture
def iterates(kind):
    return any(field.name == "n_iterations" for field in fields(kind[1]))


@pytest.fixture
def remembers(make):
    return bool(make().start(1, CPU).get_keys())


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Quadratic:
    """Minus the squared distance to a target (E, H, A), summed; keeps the candidates that it was shown."""

    def __init__(self, target):
        self.target, self.shown = target, []

    def __call__(self, actions):
        self.shown.append(actions.clone())
        return -(actions - self.target.unsqueeze(1)).square().sum((-1, -2))


def targets(n_envs, seed=1, bound=0.6):
    return bound * (2 * torch.rand(n_envs, H, A, generator=seeded(seed)) - 1)


def clone(batch):
    return Batch({key: batch[key].clone() for key in batch.get_keys()})


def same_row(a, b, row):
    """Whether two plans agree to the bit in one environment."""
    equal = [torch.equal(a.warm_start[key][row], b.warm_start[key][row]) for key in a.warm_start.get_keys()]
    equal += [torch.equal(a.actions[row], b.actions[row]), torch.equal(a.score[row], b.score[row])]
    return all(equal) and torch.equal(a.best_scores[:, row], b.best_scores[:, row])


def assert_within(actions, space):
    assert (torch.as_tensor(space.low) - actions).max() <= 0
    assert (actions - torch.as_tensor(space.high)).max() <= 0


def test_what_a_plan_holds(make):
    planner, score, start = make(), Quadratic(targets(3)), make().start(3, CPU)
    plan = planner.plan(score, 3, start, seeded())
    assert plan.actions.shape == (3, H, A)
    assert plan.score.shape == (3,)
    assert plan.best_scores.shape == (len(score.shown), 3)
    assert plan.actions.dtype == plan.score.dtype == torch.float32
    for key in plan.warm_start.get_keys():
        assert (plan.warm_start[key].shape, plan.warm_start[key].dtype) == (start[key].shape, start[key].dtype)
    torch.testing.assert_close(plan.score, plan.best_scores[-1])
    assert all(candidates.shape[0] == 3 and candidates.shape[2:] == (H, A) for candidates in score.shown)


# Averages of elites on a bound are off by rounding.
@pytest.mark.parametrize("execute", ["best", "mean"])
@pytest.mark.parametrize("space", [SPACE, ODD_SPACE], ids=["symmetric", "asymmetric"])
def test_bounds_are_never_violated(make, space, execute):
    width = space.shape[0]
    direction = torch.randn(4, 1, H, width, generator=seeded(3))
    # Wide and without momentum: elites that all lie on a bound are averaged.
    settings = {"execute": execute, "n_elites": 7, "n_iterations": 6, "init_std": 20.0, "momentum": 0.0}
    planner, generator, shown = make(space, **settings), seeded(), []

    def score(actions):
        shown.append(actions.clone())
        return (actions * direction).sum((-1, -2))  # the optimum is at the bounds

    memory = planner.start(4, CPU)
    for _ in range(4):
        plan = planner.plan(score, 4, memory, generator)
        assert_within(plan.actions, space)
        memory = plan.warm_start
    for candidates in shown:
        assert_within(candidates, space)


def test_no_action_gets_stuck(make):
    planner, generator, shown = make(ODD_SPACE), seeded(), []

    def score(actions):
        shown.append(actions.clone())
        return actions.new_zeros(actions.shape[:2])

    memory = planner.start(4, CPU)
    for _ in range(3):
        shown.clear()
        memory = planner.plan(score, 4, memory, generator).warm_start
        spread = shown[0].std(1) / torch.as_tensor(ODD_SPACE.high - ODD_SPACE.low)
        assert spread.min() > 0.02


def test_the_same_generator_gives_the_same_plan(make):
    planner, score = make(), Quadratic(targets(3))
    memory = planner.plan(score, 3, planner.start(3, CPU), seeded(5)).warm_start
    state = torch.random.get_rng_state()
    first, again, other = (planner.plan(score, 3, memory, seeded(seed)) for seed in (0, 0, 1))
    assert all(same_row(first, again, row) and not same_row(first, other, row) for row in range(3))
    assert torch.equal(state, torch.random.get_rng_state())  # nothing came from the global generator


def test_arguments_are_not_modified(make):
    planner, proposals = make(), 3 * torch.randn(3, 2, H, A, generator=seeded(8))
    memory = planner.plan(Quadratic(targets(3)), 3, planner.start(3, CPU), seeded()).warm_start
    kept, kept_proposals = clone(memory), proposals.clone()
    planner.plan(Quadratic(targets(3)), 3, memory, seeded(), proposals)
    assert all(torch.equal(memory[key], kept[key]) for key in kept.get_keys())
    assert torch.equal(proposals, kept_proposals)


# Known to fail: iCEM writes into the scores that it was given.
def test_scores_are_not_modified(make):
    planner, zero = make(), torch.zeros(1, 1)
    planner.plan(lambda x: zero.expand(x.shape[:2]), 3, planner.start(3, CPU), seeded())
    assert zero.item() == 0


def test_other_environments_do_not_matter_to_the_bit(make):
    planner, target = make(), targets(8)
    memory = planner.plan(Quadratic(target), 8, planner.start(8, CPU), seeded(4)).warm_start
    plan = planner.plan(Quadratic(target), 8, memory, seeded())
    alone = [6] if memory.get_keys() else []  # what remembers nothing does not mind another memory
    changed_target, changed_memory = target.clone(), clone(memory)
    changed_target[3], changed_target[5] = torch.nan, -target[5]  # environment 3 fails altogether
    for key in memory.get_keys():
        changed_memory[key][6] = memory[key][7]
    with pytest.raises(PlanningError, match="in the environments 3") as caught:
        planner.plan(Quadratic(changed_target), 8, changed_memory, seeded())
    changed = caught.value.plan
    assert caught.value.env_ids == [3]
    assert [same_row(plan, changed, row) for row in range(8)] == [row not in (3, 5, *alone) for row in range(8)]


class RowDraws:
    """In place of torch's random numbers: each environment has a generator of its own."""

    def __init__(self, env_ids):
        self.generators = [np.random.default_rng(i) for i in env_ids]

    def _draw(self, shape, name):
        assert shape[0] == len(self.generators)
        return torch.tensor(np.stack([getattr(g, name)(size=shape[1:]) for g in self.generators]), dtype=torch.float32)

    def install(self, monkeypatch):
        monkeypatch.setattr(torch, "randn", lambda shape, **_: self._draw(shape, "standard_normal"))
        monkeypatch.setattr(torch, "rand", lambda shape, **_: self._draw(shape, "uniform"))


def test_eight_environments_at_once_equal_eight_alone(make, monkeypatch):
    first, second, proposals = targets(8), targets(8, seed=2), targets(8, seed=3).unsqueeze(1)
    planner, generator = make(execute="mean"), seeded()

    def decide_twice(env_ids):
        n = len(env_ids)
        with monkeypatch.context() as patch:
            RowDraws(env_ids).install(patch)
            memory = planner.plan(Quadratic(first[env_ids]), n, planner.start(n, CPU), generator).warm_start
            return planner.plan(Quadratic(second[env_ids]), n, memory, generator, proposals[env_ids])

    together = decide_twice(list(range(8)))
    for i in range(8):
        alone = decide_twice([i])
        torch.testing.assert_close(together.actions[i], alone.actions[0])
        torch.testing.assert_close(together.score[i], alone.score[0])
        torch.testing.assert_close(together.best_scores[:, i], alone.best_scores[:, 0])
        for key in alone.warm_start.get_keys():
            torch.testing.assert_close(together.warm_start[key][i], alone.warm_start[key][0])


def test_the_warm_start_is_the_plan_one_step_on(make, iterates):
    if not iterates:
        pytest.skip("does not concentrate on anything")
    # Far from uniform in time, so that a shift by zero or two steps shows.
    target = torch.tensor([0.6, -0.6, 0.5, -0.5, 0.4])[None, :, None].expand(3, H, A)
    planner, score = make(n_samples=2000, n_iterations=8, n_elites=50, noise_exponent=0.0), Quadratic(target)
    memory = planner.plan(score, 3, planner.start(3, CPU), seeded()).warm_start
    score.shown.clear()
    planner.plan(score, 3, memory, seeded(1))
    # The median of the first candidates is the centre that they are drawn around, also where bounds cut samples off.
    centre = score.shown[0].median(1).values
    torch.testing.assert_close(centre[:, :-1], target[:, 1:], rtol=0, atol=0.1)


def test_a_fresh_environment_has_no_history(make, remembers):
    if not remembers:
        pytest.skip("has no history anywhere")
    planner, target = make(), targets(3)
    memory = planner.plan(Quadratic(targets(3, seed=9)), 3, planner.start(3, CPU), seeded(4)).warm_start
    fresh = planner.start(1, CPU)
    for key in memory.get_keys():
        memory[key][1] = fresh[key][0]
    one_fresh = planner.plan(Quadratic(target), 3, memory, seeded())
    all_fresh = planner.plan(Quadratic(target), 3, planner.start(3, CPU), seeded())
    assert same_row(one_fresh, all_fresh, 1)
    assert not same_row(one_fresh, all_fresh, 0)


@pytest.mark.parametrize("execute", ["best", "mean"])
def test_a_quadratic_is_solved(make, iterates, execute):
    target, many = targets(4), {"n_samples": 300, "n_iterations": 15, "n_elites": 20, "noise_exponent": 0.0}
    planner = make(**many, execute=execute)
    if not iterates:
        planner, target = make(spaces.Box(-1.0, 1.0, (1,)), horizon=1, n_samples=2000), target[:, :1, :1]
    plan = planner.plan(Quadratic(target), 4, planner.start(4, CPU), seeded())
    torch.testing.assert_close(plan.actions, target, rtol=0, atol=1e-2)


def rugged(actions):
    """A quadratic with ripples."""
    x = actions - 0.3
    return -(x.square() + 0.1 * (1 - torch.cos(12 * x))).sum((-1, -2))


@pytest.mark.parametrize("setting", ["n_samples", "n_iterations"])
def test_more_of_it_is_not_worse(make, iterates, setting):
    if setting == "n_iterations" and not iterates:
        pytest.skip("has no iterations")
    found = []
    for factor in (1, 2, 4):
        planner = make(**{setting: factor * {"n_samples": 16, "n_iterations": 2}[setting]})
        # The rows are independent, so that 20 environments are 20 seeds.
        plan = planner.plan(rugged, 20, planner.start(20, CPU), seeded())
        found.append(rugged(plan.actions.unsqueeze(1)).mean().item())
    assert found == sorted(found)


@pytest.mark.parametrize("execute", ["best", "mean"])
def test_what_scores_nan_is_never_chosen(make, execute):
    planner = make(execute=execute)

    def score(actions):
        first = actions[:, :, 0, 0]
        return torch.where(first > 0, torch.nan, first)  # the better, the closer to the abyss

    plan = planner.plan(score, 6, planner.start(6, CPU), seeded())
    assert (plan.actions[:, 0, 0] <= 0).all()
    assert plan.best_scores.isfinite().all()


@pytest.mark.parametrize("value", [torch.nan, -torch.inf, torch.inf])
def test_where_everything_fails_it_says_so(make, value):
    planner = make()
    with pytest.raises(PlanningError, match="no candidate had a finite score in the environments 0, 1") as caught:
        planner.plan(lambda x: x.new_full(x.shape[:2], value), 2, planner.start(2, CPU), seeded())
    plan = caught.value.plan
    assert_within(plan.actions, SPACE)
    assert plan.actions.isfinite().all()
    assert all(plan.warm_start[key].isfinite().all() for key in plan.warm_start.get_keys() if key != "fresh")


def test_an_iteration_that_fails_altogether_changes_nothing(make, iterates):
    if not iterates:
        pytest.skip("has no iterations")
    planner, target = make(n_iterations=3), targets(2)
    calls = []

    def score(x):
        calls.append(x)
        return Quadratic(target)(x) if len(calls) == 1 else x.new_full(x.shape[:2], torch.nan)

    plan = planner.plan(score, 2, planner.start(2, CPU), seeded())
    first = make(n_iterations=1, add_mean=False).plan(Quadratic(target), 2, planner.start(2, CPU), seeded())
    torch.testing.assert_close(plan.actions, first.actions)


@pytest.mark.parametrize("n_proposals", [1, 3])
def test_the_best_proposal_wins(make, n_proposals):
    proposals = torch.rand(4, n_proposals, H, A, generator=seeded(6)) - 0.5
    needle = proposals[:, -1:]
    score = lambda x: 10.0 * (x == needle).all(-1).all(-1) - x.square().sum((-1, -2))  # noqa: E731
    planner = make(n_iterations=1, execute="best")
    plan = planner.plan(score, 4, planner.start(4, CPU), seeded(), proposals)
    assert torch.equal(plan.actions, proposals[:, -1])
    torch.testing.assert_close(plan.score, score(needle)[:, 0])


def test_bad_proposals_do_no_harm(make):
    planner, score, memory = make(), Quadratic(targets(4)), make().start(4, CPU)
    plain = planner.plan(score, 4, memory, seeded())
    plan = planner.plan(score, 4, memory, seeded(), torch.full((4, 2, H, A), -1.0))
    assert all(same_row(plain, plan, row) for row in range(4))


def test_proposals_beyond_the_bounds_are_brought_inside(make):
    planner, score = make(), Quadratic(targets(2))
    planner.plan(score, 2, planner.start(2, CPU), seeded(), torch.full((2, 1, H, A), 7.0))
    assert (score.shown[0] == 1.0).all(-1).all(-1).any(1).all()


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.MultiBinary(3), "action space MultiBinary.*, expected a Box, Discrete or MultiDiscrete"),
        (spaces.Discrete(3, start=1), "expected one that starts at 0"),
        (spaces.Box(-1.0, np.inf, (2,)), "finite bounds"),
        (spaces.Box(-1.0, 1.0, (2, 2)), r"shape \(2, 2\), expected one dimension"),
    ],
)
def test_action_spaces_that_cannot_be_planned_in(make, space, message):
    with pytest.raises(ValueError, match=message):
        make(space)


@pytest.mark.parametrize("wrong", ["warm_start", "proposals", "score"])
def test_wrong_shapes_are_named(make, remembers, wrong):
    if wrong == "warm_start" and not remembers:
        pytest.skip("has no history anywhere")
    planner, target = make(), targets(3)
    memory, proposals, score = planner.start(3, CPU), torch.zeros(3, 1, H, A), Quadratic(target)
    if wrong == "warm_start":
        memory = planner.start(1, CPU)
    if wrong == "proposals":
        proposals = torch.zeros(3, H, A)
    if wrong == "score":
        score = lambda x: Quadratic(target)(x).unsqueeze(-1)  # noqa: E731
    with pytest.raises(ValueError, match=wrong):
        planner.plan(score, 3, memory, seeded(), proposals)


def test_best_first_ranks_nan_last_and_keeps_ties_in_order():
    nan, inf = torch.nan, torch.inf
    raw = torch.tensor([[nan, 1.0, 2.0, nan, 2.0], [-inf, nan, -3.0, inf, 0.0], [5.0, 5.0, 5.0, 5.0, 5.0]])
    candidates = torch.arange(5.0)[None, :, None, None].expand(3, 5, 2, 1)
    scores = evaluate(lambda _: raw, candidates)
    chosen, chosen_scores = best_first(candidates, scores, 5)
    # The places of those that failed go to the best one.
    assert chosen[:, :, 0, 0].tolist() == [[2, 4, 1, 2, 2], [4, 2, 4, 4, 4], [0, 1, 2, 3, 4]]
    assert chosen_scores.tolist() == [[2, 2, 1, -inf, -inf], [0, -3, -inf, -inf, -inf], [5] * 5]
    assert torch.equal(best_first(candidates, scores, 2)[0], chosen[:, :2])


def test_shift_drops_the_first_action():
    sequences, last = torch.arange(12.0).view(2, 3, 2), torch.tensor([[-1.0, -2.0], [-3.0, -4.0]])
    assert shift(sequences, last).tolist() == [[[2, 3], [4, 5], [-1, -2]], [[8, 9], [10, 11], [-3, -4]]]
