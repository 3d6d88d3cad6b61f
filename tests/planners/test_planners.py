"""Contract of all registered planners."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tianshou.data import Batch

from layeredrl.planners import PLANNERS, PlannerConfig
from layeredrl.planners.planner import best_first, evaluate, shift
from tests.planners.plain import CPU, Recorder, flat, seeded

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
MULTI = spaces.MultiDiscrete([3, 2, 5])
# Bounds whose averages do not round to the bounds themselves.
ODD_SPACE = spaces.Box(np.array([-0.3, 0.1, -2.6], np.float32), np.array([0.1, 1.1, -0.7], np.float32))


@pytest.fixture(params=PLANNERS)
def kind(request):
    return request.param


@pytest.fixture(params=[SPACE], ids=["Box"])
def space(request):
    """A Box, unless a test asks for others."""
    return request.param


in_all_spaces = pytest.mark.parametrize("space", [SPACE, MULTI], ids=["Box", "MultiDiscrete"], indirect=True)
in_a_discrete_space = pytest.mark.parametrize("space", [MULTI], ids=["MultiDiscrete"], indirect=True)


@pytest.fixture
def make(kind, space):
    """Builds a planner; settings that it does not have are left out."""
    config = PLANNERS[kind][1]
    known = {field.name for field in fields(config)}

    def build(space=space, **settings):
        settings = config(**{key: value for key, value in (SMALL | settings).items() if key in known})
        return PlannerConfig(kind, **{kind: settings}).build(space)

    return build


@pytest.fixture
def iterates(kind):
    return any(field.name == "n_iterations" for field in fields(PLANNERS[kind][1]))


@pytest.fixture
def remembers(make):
    return bool(make().initial_warm_start(1, CPU).get_keys())


class Quadratic:
    """Minus the squared distance to a target (E, H, A), summed; keeps the candidates that it was shown."""

    def __init__(self, target):
        self.target, self.shown = target, []

    def __call__(self, actions):
        self.shown.append(actions.clone())
        return -(actions - self.target.unsqueeze(1)).square().sum((-1, -2))


class Table(Quadratic):
    """Sum of the values (E, H, A, C) that the choices have."""

    def __call__(self, actions):
        self.shown.append(actions.clone())
        values = self.target.unsqueeze(1).expand(-1, actions.shape[1], -1, -1, -1)
        return values.gather(-1, actions.unsqueeze(-1)).sum((-1, -2, -3))


def objective(target):
    return Quadratic(target) if target.ndim == 3 else Table(target)


def n_choices(space):
    return np.atleast_1d(space.n if isinstance(space, spaces.Discrete) else space.nvec)


def targets(n_envs, seed=1, bound=0.6, space=SPACE):
    """Targets (E, H, A) or values of choices (E, H, A, C) for `objective`."""
    if isinstance(space, spaces.Box):
        return bound * (2 * torch.rand(n_envs, H, A, generator=seeded(seed)) - 1)
    counts = n_choices(space)
    return torch.randn(n_envs, H, len(counts), max(counts), generator=seeded(seed))


def some_actions(space, *lead, seed=0):
    """Random actions (*lead, A)."""
    rng = np.random.default_rng(seed)
    if isinstance(space, spaces.Box):
        return torch.tensor(rng.uniform(space.low, space.high, (*lead, *space.shape)), dtype=torch.float32)
    return torch.tensor(rng.integers(0, n_choices(space), (*lead, len(n_choices(space)))))


def clone(batch):
    return Batch({key: batch[key].clone() for key in batch.get_keys()})


def same_row(a, b, row):
    """True if two plans agree to the bit in one environment."""
    equal = [torch.equal(a.warm_start[key][row], b.warm_start[key][row]) for key in a.warm_start.get_keys()]
    equal += [torch.equal(a.actions[row], b.actions[row]), torch.equal(a.score[row], b.score[row])]
    return all(equal) and torch.equal(a.best_scores[:, row], b.best_scores[:, row])


def assert_within(actions, space):
    if isinstance(space, spaces.Box):
        assert (torch.as_tensor(space.low) - actions).max() <= 0
        assert (actions - torch.as_tensor(space.high)).max() <= 0
    else:
        assert actions.dtype == torch.int64
        assert actions.min() >= 0
        assert (actions < torch.as_tensor(n_choices(space))).all()


@pytest.mark.parametrize("space", [SPACE, spaces.Discrete(4), MULTI], ids=["Box", "Discrete", "Multi"], indirect=True)
def test_shapes_and_dtypes_of_a_plan(make, space):
    planner, score, start = make(), objective(targets(3, space=space)), make().initial_warm_start(3, CPU)
    plan = planner.plan(score, 3, start, seeded())
    width = some_actions(space).shape[-1]
    assert plan.actions.shape == (3, H, width)
    assert plan.score.shape == (3,)
    assert plan.best_scores.shape == (len(score.shown), 3)
    assert plan.actions.dtype == (torch.float32 if isinstance(space, spaces.Box) else torch.int64)
    assert plan.score.dtype == plan.best_scores.dtype == torch.float32
    for key in plan.warm_start.get_keys():
        assert (plan.warm_start[key].shape, plan.warm_start[key].dtype) == (start[key].shape, start[key].dtype)
    torch.testing.assert_close(plan.score, plan.best_scores[-1])
    assert all(candidates.shape[0] == 3 and candidates.shape[2:] == (H, width) for candidates in score.shown)


@in_a_discrete_space
@pytest.mark.parametrize("execute", ["best", "mean"])
def test_choices_are_in_the_action_space(make, space, execute):
    planner, generator, score = make(execute=execute, n_iterations=6), seeded(), Table(targets(4, space=space))
    memory = planner.initial_warm_start(4, CPU)
    for _ in range(4):
        plan = planner.plan(score, 4, memory, generator)
        assert_within(plan.actions, space)
        memory = plan.warm_start
    for candidates in score.shown:
        assert_within(candidates, space)
    seen = torch.cat([candidates.flatten(0, 2) for candidates in score.shown])
    for i, n in enumerate(n_choices(space)):
        assert seen[:, i].unique().tolist() == list(range(n))  # all of them, too


# Averages of elites on a bound are off by rounding.
@pytest.mark.parametrize("execute", ["best", "mean"])
def test_bounds_are_never_violated(make, execute):
    direction = torch.randn(4, 1, H, ODD_SPACE.shape[0], generator=seeded(3))
    # Wide and without momentum: elites that all lie on a bound are averaged.
    settings = {"execute": execute, "n_elites": 7, "n_iterations": 6, "init_std": 20.0, "momentum": 0.0}
    planner, generator = make(ODD_SPACE, **settings), seeded()
    score = Recorder(lambda actions: (actions * direction).sum((-1, -2)))  # the optimum is at the bounds
    memory = planner.initial_warm_start(4, CPU)
    for _ in range(4):
        plan = planner.plan(score, 4, memory, generator)
        assert_within(plan.actions, ODD_SPACE)
        memory = plan.warm_start
    for candidates in score.shown:
        assert_within(candidates, ODD_SPACE)


def test_exploration_does_not_vanish(make):
    planner, generator, score = make(ODD_SPACE), seeded(), Recorder(flat)
    memory = planner.initial_warm_start(4, CPU)
    for _ in range(3):
        score.shown.clear()
        memory = planner.plan(score, 4, memory, generator).warm_start
        spread = score.shown[0].std(1) / torch.as_tensor(ODD_SPACE.high - ODD_SPACE.low)
        assert spread.min() > 0.02


@pytest.mark.parametrize("kind", ["icem", "mppi"])
@pytest.mark.parametrize(("exponent", "jump"), [(0.0, 2.0), (2.0, 1.092)])  # 2 (1 - autocorrelation) over six steps
def test_noise_is_coloured_along_the_horizon(make, exponent, jump):
    wide, n, score = spaces.Box(-100.0, 100.0, (A,)), 4000, Recorder(flat)
    planner = make(wide, horizon=6, n_samples=n, n_iterations=2, init_std=0.01, noise_exponent=exponent)
    planner.plan(score, 1, planner.initial_warm_start(1, CPU), seeded())
    samples = score.shown[0][0, :n]
    torch.testing.assert_close(samples.std(0), torch.ones(6, A), rtol=0, atol=0.06)
    assert samples.diff(dim=1).var().item() == pytest.approx(jump, abs=0.1 if not exponent else 0.05)


@in_all_spaces
def test_the_same_generator_gives_the_same_plan(make, space):
    planner, score = make(n_iterations=2), objective(targets(3, space=space))  # with more, both may find the optimum
    memory = planner.plan(score, 3, planner.initial_warm_start(3, CPU), seeded(5)).warm_start
    state = torch.random.get_rng_state()
    first, again, other = (planner.plan(score, 3, memory, seeded(seed)) for seed in (0, 0, 1))
    assert all(same_row(first, again, row) and not same_row(first, other, row) for row in range(3))
    assert torch.equal(state, torch.random.get_rng_state())  # nothing came from the global generator


@in_all_spaces
def test_arguments_are_not_modified(make, space):
    planner, proposals = make(), 3 * some_actions(space, 3, 2, H)  # not all within bounds
    score = objective(targets(3, space=space))
    memory = planner.plan(score, 3, planner.initial_warm_start(3, CPU), seeded()).warm_start
    kept, kept_proposals = clone(memory), proposals.clone()
    planner.plan(score, 3, memory, seeded(), proposals)
    assert all(torch.equal(memory[key], kept[key]) for key in kept.get_keys())
    assert torch.equal(proposals, kept_proposals)


# iCEM once wrote into the scores that it was given.
def test_scores_are_not_modified(make):
    planner, zero = make(), torch.zeros(1, 1)
    planner.plan(lambda x: zero.expand(x.shape[:2]), 3, planner.initial_warm_start(3, CPU), seeded())
    assert zero.item() == 0


@in_all_spaces
@pytest.mark.parametrize("dtype", [torch.int64, torch.bfloat16], ids=str)
def test_scores_may_have_any_dtype(make, space, dtype):
    planner = make(temperature=0.7)
    count = lambda x: (x > 0).sum((-1, -2))  # noqa: E731
    plain, plan = (
        planner.plan(lambda x: count(x).to(kind), 3, planner.initial_warm_start(3, CPU), seeded())  # noqa: B023
        for kind in (torch.float32, dtype)
    )
    assert torch.equal(plan.actions, plain.actions)
    assert plan.score.tolist() == plain.score.tolist()
    assert plan.score.is_floating_point()
    for key in plan.warm_start.get_keys():
        assert torch.equal(plan.warm_start[key], plain.warm_start[key])


@in_all_spaces
def test_other_environments_do_not_matter_to_the_bit(make, space):
    planner, target = make(), targets(8, space=space)
    memory = planner.plan(objective(target), 8, planner.initial_warm_start(8, CPU), seeded(4)).warm_start
    plan = planner.plan(objective(target), 8, memory, seeded())
    alone = [6] if memory.get_keys() else []  # without a warm start another one changes nothing
    changed_target, changed_memory = target.clone(), clone(memory)
    changed_target[3], changed_target[5] = torch.nan, -target[5]  # environment 3 fails altogether
    for key in memory.get_keys():
        changed_memory[key][6] = memory[key][7]
    changed = planner.plan(objective(changed_target), 8, changed_memory, seeded())
    assert changed.found.tolist() == [row != 3 for row in range(8)]
    assert [same_row(plan, changed, row) for row in range(8)] == [row not in (3, 5, *alone) for row in range(8)]


class RowDraws:
    """Replaces torch's random numbers: each environment has a generator of its own."""

    def __init__(self, env_ids):
        self.generators = [np.random.default_rng(i) for i in env_ids]

    def _draw(self, shape, name):
        assert shape[0] == len(self.generators)
        return torch.tensor(np.stack([getattr(g, name)(size=shape[1:]) for g in self.generators]), dtype=torch.float32)

    def install(self, monkeypatch):
        monkeypatch.setattr(torch, "randn", lambda shape, **_: self._draw(shape, "standard_normal"))
        monkeypatch.setattr(torch, "rand", lambda shape, **_: self._draw(shape, "uniform"))
        monkeypatch.setattr(torch, "randint", lambda n, shape, **_: (n * self._draw(shape, "uniform")).long())


@in_all_spaces
def test_environments_planned_together_equal_those_planned_alone(make, space, monkeypatch):
    first, second = targets(4, space=space), targets(4, seed=2, space=space)
    proposals = some_actions(space, 4, 1, H)
    planner, generator = make(execute="mean"), seeded()

    def decide_twice(env_ids):
        n = len(env_ids)
        with monkeypatch.context() as patch:
            RowDraws(env_ids).install(patch)
            memory = planner.plan(
                objective(first[env_ids]), n, planner.initial_warm_start(n, CPU), generator
            ).warm_start
            return planner.plan(objective(second[env_ids]), n, memory, generator, proposals[env_ids])

    together = decide_twice(list(range(4)))
    for i in range(4):
        alone = decide_twice([i])
        torch.testing.assert_close(together.actions[i], alone.actions[0])
        torch.testing.assert_close(together.score[i], alone.score[0])
        torch.testing.assert_close(together.best_scores[:, i], alone.best_scores[:, 0])
        for key in alone.warm_start.get_keys():
            torch.testing.assert_close(together.warm_start[key][i], alone.warm_start[key][0])


def test_the_warm_start_is_the_shifted_plan(make, iterates):
    if not iterates:
        pytest.skip("does not concentrate on anything")
    # Far from uniform in time, so that a shift by zero or two steps shows.
    target = torch.tensor([0.6, -0.6, 0.5, -0.5, 0.4])[None, :, None].expand(3, H, A)
    planner, score = make(n_samples=2000, n_iterations=8, n_elites=50, noise_exponent=0.0), Quadratic(target)
    memory = planner.plan(score, 3, planner.initial_warm_start(3, CPU), seeded()).warm_start
    score.shown.clear()
    planner.plan(score, 3, memory, seeded(1))
    # The median of the first candidates is the centre that they are drawn around, also where bounds cut samples off.
    centre = score.shown[0].median(1).values
    torch.testing.assert_close(centre[:, :-1], target[:, 1:], rtol=0, atol=0.1)


@in_a_discrete_space
def test_the_warm_start_is_the_shifted_choices(make, iterates, space):
    if not iterates:
        pytest.skip("does not concentrate on anything")
    best = (torch.arange(H).unsqueeze(1) % torch.as_tensor(n_choices(space))).expand(3, -1, -1)
    planner = make(n_samples=1000, n_iterations=8, n_elites=50, noise_exponent=0.0)
    score = Quadratic(best)
    memory = planner.plan(score, 3, planner.initial_warm_start(3, CPU), seeded()).warm_start
    score.shown.clear()
    planner.plan(score, 3, memory, seeded(1))
    assert torch.equal(score.shown[0].mode(1).values[:, :-1], best[:, 1:])


@in_a_discrete_space
@pytest.mark.parametrize("share", [0.2, 1.0])
def test_decisions_start_with_a_share_of_the_uniform_distribution(make, iterates, space, share):
    if not iterates:
        pytest.skip("is always uniform")
    n = 4000
    planner = make(uniform_share=share, n_samples=n, noise_exponent=0.0)
    memory, counts = planner.initial_warm_start(1, CPU), n_choices(space)
    memory.center = torch.zeros_like(memory.center)
    memory.center[..., 0] = 1  # certain of the first choice
    score = Table(targets(1, space=space))
    planner.plan(score, 1, memory, seeded())
    others = (score.shown[0][0, :n] > 0).float().mean(0)
    wanted = torch.as_tensor(share * (1 - 1 / counts)).float().expand(H, -1)
    assert ((others - wanted).abs() <= 4.5 * (wanted * (1 - wanted) / n).sqrt()).all()


@in_all_spaces
def test_a_fresh_environment_has_no_history(make, remembers, space):
    if not remembers:
        pytest.skip("has no history anywhere")
    planner, target = make(), targets(3, space=space)
    earlier = objective(targets(3, seed=9, space=space))
    memory = planner.plan(earlier, 3, planner.initial_warm_start(3, CPU), seeded(4)).warm_start
    fresh = planner.initial_warm_start(1, CPU)
    for key in memory.get_keys():
        memory[key][1] = fresh[key][0]
    one_fresh = planner.plan(objective(target), 3, memory, seeded())
    all_fresh = planner.plan(objective(target), 3, planner.initial_warm_start(3, CPU), seeded())
    assert same_row(one_fresh, all_fresh, 1)
    assert not same_row(one_fresh, all_fresh, 0)


@pytest.mark.parametrize("execute", ["best", "mean"])
def test_a_quadratic_is_solved(make, iterates, execute):
    target, many = targets(4), {"n_samples": 300, "n_iterations": 15, "n_elites": 20, "noise_exponent": 0.0}
    planner = make(**many, execute=execute)
    if not iterates:
        planner, target = make(spaces.Box(-1.0, 1.0, (1,)), horizon=1, n_samples=2000), target[:, :1, :1]
    plan = planner.plan(Quadratic(target), 4, planner.initial_warm_start(4, CPU), seeded())
    torch.testing.assert_close(plan.actions, target, rtol=0, atol=1e-2)


@in_a_discrete_space
@pytest.mark.parametrize("execute", ["best", "mean"])
def test_a_sequence_is_matched_exactly(make, iterates, space, execute):
    horizon = H if iterates else 1
    target = some_actions(space, 4, horizon)
    planner = make(n_samples=500, n_iterations=15, n_elites=20, execute=execute, horizon=horizon)
    matches = lambda x: (x == target.unsqueeze(1)).sum((-1, -2))  # noqa: E731
    plan = planner.plan(matches, 4, planner.initial_warm_start(4, CPU), seeded())
    assert torch.equal(plan.actions, target)
    assert plan.score.dtype == torch.float32  # though the number of matches is an integer
    assert plan.score.tolist() == [target[0].numel()] * 4


def rugged(actions):
    """A quadratic with ripples."""
    x = actions - 0.3
    return -(x.square() + 0.1 * (1 - torch.cos(12 * x))).sum((-1, -2))


def pairs(actions):
    """Sum of values of neighbouring pairs in a sequence: single choices say little."""
    x = actions.float()
    return (3 * torch.sin(2.3 * x[..., 1:, :] + 4.1 * x[..., :-1, :]) - 0.3 * x[..., 1:, :]).sum((-1, -2))


@in_all_spaces
@pytest.mark.parametrize("setting", ["n_samples", "n_iterations"])
def test_more_samples_or_iterations_are_not_worse(make, iterates, space, setting):
    if setting == "n_iterations" and not iterates:
        pytest.skip("has no iterations")
    score = rugged if isinstance(space, spaces.Box) else pairs
    found = []
    for factor in (1, 3, 9):
        planner = make(**{setting: factor * {"n_samples": 16, "n_iterations": 1}[setting]})
        # The rows are independent, so that 100 environments are 100 seeds.
        plan = planner.plan(score, 100, planner.initial_warm_start(100, CPU), seeded())
        found.append(score(plan.actions.unsqueeze(1)).mean().item())
    assert found == sorted(found)


@in_all_spaces
@pytest.mark.parametrize("execute", ["best", "mean"])
def test_a_score_of_nan_is_never_chosen(make, space, execute):
    planner, edge = make(execute=execute), 0 if isinstance(space, spaces.Box) else 1

    def score(actions):
        first = actions[:, :, 0, 0]
        return torch.where(first > edge, torch.nan, first.float())  # the better, the closer to the abyss

    plan = planner.plan(score, 6, planner.initial_warm_start(6, CPU), seeded())
    assert (plan.actions[:, 0, 0] <= edge).all()
    assert plan.best_scores.isfinite().all()


@in_all_spaces
@pytest.mark.parametrize("value", [torch.nan, -torch.inf, torch.inf])
def test_where_no_score_is_finite_nothing_is_found(make, space, value):
    planner = make()
    plan = planner.plan(lambda x: torch.full(x.shape[:2], value), 2, planner.initial_warm_start(2, CPU), seeded())
    assert plan.found.tolist() == [False, False]
    assert_within(plan.actions, space)
    assert plan.actions.isfinite().all()
    assert all(plan.warm_start[key].isfinite().all() for key in plan.warm_start.get_keys() if key != "fresh")


@in_all_spaces
def test_an_iteration_without_finite_scores_changes_nothing(make, iterates, space):
    if not iterates:
        pytest.skip("has no iterations")
    planner, target = make(n_iterations=3), targets(2, space=space)
    calls = []

    def score(x):
        calls.append(x)
        return objective(target)(x) if len(calls) == 1 else torch.full(x.shape[:2], torch.nan)

    plan = planner.plan(score, 2, planner.initial_warm_start(2, CPU), seeded())
    first = make(n_iterations=1, add_mean=False).plan(
        objective(target), 2, planner.initial_warm_start(2, CPU), seeded()
    )
    torch.testing.assert_close(plan.actions, first.actions)


@in_all_spaces
def test_the_best_proposal_wins(make, space):
    proposals = some_actions(space, 4, 3, H)
    needle = proposals[:, -1:]
    score = lambda x: 1000.0 * (x == needle).all(-1).all(-1) - x.square().sum((-1, -2))  # noqa: E731
    planner = make(n_iterations=1, execute="best")
    plan = planner.plan(score, 4, planner.initial_warm_start(4, CPU), seeded(), proposals)
    assert torch.equal(plan.actions, proposals[:, -1])
    torch.testing.assert_close(plan.score, score(needle)[:, 0])


@in_all_spaces
def test_bad_proposals_change_nothing(make, space):
    target = targets(4, space=space)
    planner, score, memory = make(), objective(target), make().initial_warm_start(4, CPU)
    if isinstance(space, spaces.Box):
        worst = -target.sign()
    else:
        possible = torch.arange(target.shape[-1]) < torch.as_tensor(n_choices(space)).unsqueeze(1)
        worst = torch.where(possible, target, torch.inf).argmin(-1)
    plain = planner.plan(score, 4, memory, seeded())
    plan = planner.plan(score, 4, memory, seeded(), worst.unsqueeze(1).repeat(1, 2, 1, 1))
    assert all(same_row(plain, plan, row) for row in range(4))


@in_all_spaces
@pytest.mark.parametrize("sign", [-1, 1])
def test_proposals_beyond_the_bounds_are_clipped(make, space, sign):
    planner, score = make(), objective(targets(2, space=space))
    planner.plan(score, 2, planner.initial_warm_start(2, CPU), seeded(), sign * (7 + 0 * some_actions(space, 2, 1, H)))
    if isinstance(space, spaces.Box):
        bound = torch.as_tensor(space.low if sign < 0 else space.high)
    else:
        bound = torch.as_tensor(0 * n_choices(space) if sign < 0 else n_choices(space) - 1)
    assert_within(score.shown[0], space)
    assert (score.shown[0] == bound).all(-1).all(-1).any(1).all()


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.MultiBinary(3), "action space MultiBinary.*, expected a Box, Discrete or MultiDiscrete"),
        (spaces.Discrete(3, start=1), "expected one that starts at 0"),
        (spaces.MultiDiscrete([3, 2], start=[0, 1]), "expected one that starts at 0"),
        (spaces.MultiDiscrete([[3, 2], [2, 2]]), r"shape \(2, 2\), expected one dimension"),
        (spaces.Box(-1.0, np.inf, (2,)), "finite bounds"),
        (spaces.Box(-1.0, 1.0, (2, 2)), r"shape \(2, 2\), expected one dimension"),
    ],
)
def test_action_spaces_that_cannot_be_planned_in(make, space, message):
    with pytest.raises(ValueError, match=message):
        make(space)


@in_all_spaces
@pytest.mark.parametrize("wrong", ["warm_start", "proposals", "score"])
def test_wrong_shapes_are_named(make, remembers, space, wrong):
    if wrong == "warm_start" and not remembers:
        pytest.skip("has no history anywhere")
    planner, target = make(), targets(3, space=space)
    memory, proposals, score = planner.initial_warm_start(3, CPU), some_actions(space, 3, 1, H), objective(target)
    if wrong == "warm_start":
        memory = planner.initial_warm_start(1, CPU)
    if wrong == "proposals":
        proposals = proposals[:, 0]
    if wrong == "score":
        score = lambda x: objective(target)(x).unsqueeze(-1)  # noqa: E731
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
