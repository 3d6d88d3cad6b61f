"""Rollouts as CUDA graphs, with a fake capture that runs the function on the static inputs again."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from layeredrl.models import ProbabilisticEnsemble
from layeredrl.models.nets import GaussianMixtureMLP
from layeredrl.models.rollout import per_particle, rows_to_compute
from layeredrl.models.stacked.graphs import MAX_REFUSED, GraphCache
from tests.models.networks import BranchingNet, ExplodingNet, SequentialNet, random_values
from tests.models.reference import A, C, K, M, S, box, discrete, inputs, linear_nets, make_batch, make_model


class FakeCapture:
    """Counts captures and replays, and overwrites the outputs at every replay."""

    def __init__(self):
        self.captures = self.replays = 0

    def __call__(self, function):
        self.captures += 1
        assert not torch.is_inference_mode_enabled()
        assert not torch.is_grad_enabled()
        outputs = tuple(x.clone() for x in function())

        def replay():
            self.replays += 1
            for output, value in zip(outputs, function(), strict=True):
                output.copy_(value)

        return replay, outputs


def graphed(nets=None, *, size: int = 32, **settings) -> tuple[ProbabilisticEnsemble, FakeCapture]:
    model, fake = make_model(nets, **{"n_particles_per_model": 2, **settings}), FakeCapture()
    model.graphs = GraphCache(fake, size, "cpu")
    return model, fake


def built_in(n_modes: int = 1) -> list[nn.Module]:
    return [GaussianMixtureMLP(box(S), box(C), box(A), n_modes, hidden=(16, 16)) for _ in range(M)]


def roll(model: ProbabilisticEnsemble, n: int = 3, horizon: int = 4, *, seed: int = 0, mode=torch.no_grad, **settings):
    state, context, _ = inputs(n, seed=100 + seed)
    actions = random_values(seed, n, horizon, A).clamp(-1, 1)
    with mode():
        return model.rollout(state, context, actions, generator=torch.Generator().manual_seed(seed), **settings)


def eager(model: ProbabilisticEnsemble, *args, **settings):
    """The same rollout without graphs."""
    twin = copy.deepcopy(model)
    twin.graphs = GraphCache(device="meta")
    return roll(twin, *args, **settings)


def same(actual, expected) -> None:
    assert set(actual.get_keys()) == set(expected.get_keys())
    for key in expected.get_keys():
        torch.testing.assert_close(actual[key], expected[key], rtol=0, atol=0, msg=key)


@pytest.mark.parametrize(
    ("n_modes", "mode", "deterministic", "propagation"),
    [
        (1, torch.inference_mode, False, "tsinf"),
        (K, torch.no_grad, False, "tsinf"),
        (K, torch.inference_mode, True, "tsinf"),
        (K, torch.inference_mode, False, "ts1"),
        (K, torch.no_grad, False, "expectation"),
        (1, torch.no_grad, False, "mode"),
    ],
)
def test_replays_are_the_rollouts(n_modes, propagation, deterministic, mode):
    model, fake = graphed(linear_nets(M, n_modes), n_modes=n_modes, propagation=propagation)
    for seed in range(2):  # the inputs of a replay are not those of the capture
        settings = {"seed": seed, "deterministic": deterministic, "mode": mode}
        same(roll(model, **settings), eager(model, **settings))
        ((static, _, kept),) = model.graphs._captured.values()
        assert not any(x.is_inference() for x in (*static, *kept))  # so that they can be written anywhere
    assert (fake.captures, fake.replays) == (1, 3)  # the first replay is the check


def test_results_do_not_change_when_the_graph_is_replayed_again():
    model, _ = graphed()
    roll(model)
    first = roll(model, seed=1)
    kept = {key: first[key].clone() for key in first.get_keys()}
    roll(model, seed=2)
    assert all(torch.equal(first[key], kept[key]) for key in kept)


@pytest.mark.parametrize("rollout_dtype", [None, torch.bfloat16])
def test_a_replay_sees_parameters_and_statistics_that_changed_in_place(rollout_dtype):
    settings = {"create_optimizer": True, "normalize_targets": True, "n_modes": 1, "rollout_dtype": rollout_dtype}
    model, fake = graphed(built_in(), **settings)
    before = roll(model)
    model.train().learn([make_batch(32, scale=3.0)] * 3)
    model.eval()
    changed = roll(model)
    assert not torch.allclose(changed.state, before.state)
    same(changed, eager(model))
    model.load_state_dict(
        {key: 1.1 * x for key, x in model.state_dict().items() if x.is_floating_point()}, strict=False
    )
    same(roll(model), eager(model))
    assert fake.captures == 1


def test_tensors_that_moved_are_captured_anew():
    model, fake = graphed()
    roll(model)
    for name, parameter in list(model.network.net.named_parameters()):
        setattr(model.network.net, name, nn.Parameter(1.5 * parameter.detach()))
    same(roll(model), eager(model))
    assert fake.captures == 2


@pytest.mark.parametrize(
    "change",
    [{"horizon": 5}, {"n": 7}, {"deterministic": True}, "bfloat16", "propagation"],
)
def test_another_computation_is_captured_anew(change):
    model, fake = graphed(built_in(), n_modes=1)
    roll(model)
    if change == "bfloat16":
        model.rollout_dtype = torch.bfloat16
    elif change == "propagation":
        model.propagation = "ts1"
    settings = change if isinstance(change, dict) else {}
    same(roll(model, **settings), eager(model, **settings))
    assert fake.captures == 2
    roll(model, **settings)
    assert fake.captures == 2


def test_the_least_recently_used_graph_is_dropped_first():
    model, fake = graphed(size=2)
    for horizon in (1, 2, 1):
        roll(model, horizon=horizon)
    with pytest.warns(RuntimeWarning, match="more different shapes than the 2 of which CUDA graphs are kept"):
        roll(model, horizon=3)
    roll(model, horizon=1)
    assert (fake.captures, len(model.graphs)) == (3, 2)
    roll(model, horizon=2)  # which had to go; there is one warning
    assert fake.captures == 4


def test_rollouts_with_gradients_in_training_or_at_the_start_are_not_captured():
    model, fake = graphed(symmetry_breaking_start=True, sb_start_duration=10)
    for n, n_graphs in ((0, 0), (7, 0), (10, 1)):
        model.set_n_total_env_steps(n)
        same(roll(model), eager(model))
        assert fake.captures == n_graphs
    model.set_n_total_env_steps(0)
    roll(model, loss_mode=True)  # the start takes no part
    assert fake.captures == 1
    model.set_n_total_env_steps(10)
    replays = fake.replays
    roll(model, mode=torch.enable_grad).state.sum().backward()
    roll(model.train())
    with torch.autocast("cpu", torch.bfloat16):
        roll(model.eval())
    assert fake.replays == replays


def test_divergence_and_nan_survive_a_replay():
    bad = float("nan")
    nets = [ExplodingNet(2.5, bad), ExplodingNet(99.0, bad)]
    model, fake = graphed(nets, n_modes=1)
    for seed in range(2):
        result = roll(model, horizon=8, seed=seed)
        same(result, eager(model, horizon=8, seed=seed))
        assert result.diverged.any()
    assert fake.captures == 1


def test_all_results_come_from_replays_also_the_first():
    """A replay may round differently, and a resumed run must give the results of an uninterrupted one."""

    def rounding(function):
        replay, outputs = FakeCapture()(function)
        return lambda: (replay(), outputs[0].mul_(1 + 1e-6)), outputs

    model, _ = graphed()
    model.graphs = GraphCache(rounding, device="cpu")
    first = roll(model)
    same(roll(model), first)
    assert not torch.equal(first.state, eager(model).state)
    assert not model.graphs.refused


def failing(function):
    raise RuntimeError("operation not permitted when stream is capturing\nand more lines")


def lying(function):
    replay, outputs = FakeCapture()(function)
    return lambda: (replay(), outputs[0].mul_(1.1)), outputs


def lying_about_nan(function):
    outputs = tuple(x.clone() for x in function())
    return lambda: outputs[0].fill_(float("nan")), outputs


def lying_about_divergence(function):
    replay, outputs = FakeCapture()(function)
    return lambda: (replay(), outputs[2][-1, 0, 0].logical_not_()), outputs


def empty(function):
    """Like a capture on another device than the inputs: outputs keep their values from the capture."""
    return lambda: None, tuple(x.clone() for x in function())


def deaf(function):
    """A replay that ignores new inputs."""
    values = tuple(x.clone() for x in function())
    outputs = tuple(x.clone() for x in values)
    return lambda: [output.copy_(value) for output, value in zip(outputs, values, strict=True)], outputs


LIARS = (lying, lying_about_nan, lying_about_divergence, empty, deaf)


@pytest.mark.parametrize(
    ("capture", "reason"),
    [(failing, "RuntimeError: .*stream is capturing"), *((liar, "differs") for liar in LIARS)],
)
def test_rollouts_that_cannot_be_captured_run_directly_with_one_warning(capture, reason):
    model, _ = graphed()
    model.graphs = GraphCache(capture, device="cpu")
    with pytest.warns(UserWarning, match=reason) as caught:
        first = roll(model)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    same(first, eager(model))
    same(roll(model, seed=1, horizon=2), eager(model, seed=1, horizon=2))
    assert len(model.graphs) == 0


@pytest.mark.parametrize(("n", "horizon"), [(1, 2), (2, 1)])
@pytest.mark.parametrize("capture", LIARS)
def test_replays_of_few_rows_and_steps_are_checked_too(capture, n, horizon):
    model, _ = graphed()
    model.graphs = GraphCache(capture, device="cpu")
    with pytest.warns(UserWarning, match="differs"):
        roll(model, n, horizon)


def test_only_the_key_that_failed_is_refused_until_there_are_too_many():
    model, fake = graphed()
    attempts = []

    def flawed(function):
        attempts.append(function)
        if len(attempts) == 2:
            raise RuntimeError("not this one")
        return fake(function)

    model.graphs = GraphCache(flawed, device="cpu")
    roll(model, horizon=1)
    with pytest.warns(UserWarning, match="not this one"):
        roll(model, horizon=2)
    for horizon in (1, 2, 3, 3):
        same(roll(model, horizon=horizon), eager(model, horizon=horizon))
    assert (len(attempts), len(model.graphs), len(model.graphs.refused)) == (3, 2, 1)

    model.graphs.capture = failing
    for horizon in range(4, 4 + MAX_REFUSED + 1):  # no further warning
        roll(model, horizon=horizon)
    assert len(model.graphs.refused) == MAX_REFUSED
    replays = fake.replays
    roll(model, horizon=1)
    assert fake.replays == replays + 1


def test_the_keys_of_a_planner_in_training_and_evaluation_all_fit():
    model, fake = graphed()
    model.graphs = GraphCache(fake, device="cpu")
    for _ in range(2):
        for horizon in (2, 3):
            for n in (480, 384, 307, 1):
                roll(model, n, horizon)
    assert fake.captures == 8


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_hooks_are_called_at_every_rollout(mode):
    model, fake = graphed(built_in(), n_modes=1)
    roll(model, mode=mode)
    calls = []
    handle = model.network.net.register_forward_hook(lambda *_: calls.append(1))
    for n_calls in (4, 8):
        roll(model, mode=mode)
        assert len(calls) == n_calls
    handle.remove()
    roll(model, mode=mode)
    assert (fake.captures, len(calls)) == (1, 8)


def test_errors_of_the_network_are_raised_unchanged():
    model, _ = graphed()
    model.network.forward = lambda *_: 1 / 0
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            roll(model)
    assert not model.graphs.refused


def test_a_model_moved_off_its_gpu_runs_directly():
    model = make_model()
    model.graphs = GraphCache()
    same(roll(model), roll(make_model()))
    assert len(model.graphs) == len(model.graphs.refused) == 0


def test_nan_equals_nan_in_the_check():
    def function(x: Tensor):
        return x / x, x[1:, ..., 0], x[1:, ..., 0] > 5

    cache, x = GraphCache(FakeCapture(), device="cpu"), torch.tensor([0.0, 2.0, 3.0, 1.0]).view(2, 1, 1, 2)
    for _ in range(2):
        values, *_ = cache(function, [x], "key", dtype=x.dtype)
        assert values.isnan().flatten().tolist() == [True, False, False, False]
    assert not cache.refused


def test_copies_and_pickles_capture_anew():
    model, fake = graphed()
    roll(model)
    twin = copy.deepcopy(model)
    assert (len(twin.graphs), len(model.graphs)) == (0, 1)
    with torch.no_grad():
        for parameter in model.get_parameters():
            parameter.zero_()
    result = roll(twin)
    model.load_state_dict(twin.state_dict())
    same(roll(model), result)
    assert fake.captures == 1
    pickled = pickle.loads(pickle.dumps(twin))
    assert len(pickled.graphs) == 0
    same(roll(pickled), result)
    assert isinstance(pickle.loads(pickle.dumps(GraphCache(size=3))), GraphCache)  # with the capture for GPUs


def test_graphs_are_for_gpus():
    assert make_model().graphs is None
    assert make_model(rollout_graphs=False).graphs is None


@pytest.mark.parametrize("propagation", ["tsinf", "ts1"])
@pytest.mark.parametrize("kind", ["box", "discrete", "vmap"])
def test_a_rollout_reads_no_value_from_the_device(kind, propagation):
    """On the meta device reading a value fails, as it would during a capture."""
    space = discrete(A) if kind == "discrete" else box(A)
    nets = [GaussianMixtureMLP(box(S), box(C), space, K, hidden=(16,)) for _ in range(2)]
    if kind == "vmap":
        nets = [SequentialNet(S, C, A, K, kind="batch_norm") for _ in range(2)]
    model = make_model(nets, propagation=propagation, normalize_targets=True, action_space=space).to("meta")
    state, context = torch.empty(3, S, device="meta"), torch.empty(3, C, device="meta")
    plan = torch.empty(3, 2, A, device="meta")
    if kind == "discrete":
        plan = torch.zeros(3, 2, 1, dtype=torch.int64, device="meta")
    with torch.no_grad():
        assert model.rollout(state, context, plan).state.shape == (3, 2, 1, 3, S)


@pytest.mark.parametrize("n_particles", [1, 3, 4])
@pytest.mark.parametrize("row_multiple", [1, 4, 32])
def test_rows_are_padded_to_few_sizes(row_multiple, n_particles):
    for few_sizes in (False, True):
        sizes = [rows_to_compute(n, n_particles, row_multiple, few_sizes=few_sizes) for n in range(1, 1000)]
        for n, size in enumerate(sizes, start=1):
            assert size >= n
            assert size * n_particles % row_multiple == 0
            assert size - n <= max(row_multiple - 1, n / 8 if few_sizes else 0)
    for octave in range(10):
        assert len({size for size in sizes if 2**octave < size <= 2 ** (octave + 1)}) <= 8


def test_added_rows_repeat_the_first():
    x = torch.arange(6.0).view(3, 2)
    assert per_particle(x, 5, 2)[:, 0].tolist() == [0, 0, 2, 2, 4, 4, 0, 0, 0, 0]
    assert per_particle(x, 3, 1) is x


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("rollout_dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("propagation", ["tsinf", "ts1", "expectation", "mode"])
def test_on_a_gpu_replays_are_the_rollouts(propagation, rollout_dtype):
    device = torch.device("cuda")
    settings = {"propagation": propagation, "rollout_dtype": rollout_dtype, "n_particles_per_model": 4}
    model = make_model(built_in(), n_modes=1, device=device, create_optimizer=True, **settings)
    plain = copy.deepcopy(model)
    plain.graphs = GraphCache(device="meta")
    for n, seed in ((3, 0), (3, 1), (100, 2), (101, 3), (3, 4)):
        state, context, _ = (x.to(device) for x in inputs(n, seed=seed))
        actions = random_values(seed, n, 6, A).clamp(-1, 1).to(device)
        results = []
        for each in (model, plain):
            with torch.inference_mode():
                generator = torch.Generator(device).manual_seed(seed)
                results.append(each.rollout(state, context, actions, generator=generator))
        torch.testing.assert_close(results[0].state, results[1].state, rtol=1e-3, atol=1e-3)
    assert not model.graphs.refused
    assert len(model.graphs) == 2  # 100 and 101 rows are computed as 104


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_control_flow_that_depends_on_data_falls_back():
    device = torch.device("cuda")
    with pytest.warns(UserWarning, match="one by one|member by member"):
        model = make_model([BranchingNet(S, seed=i) for i in range(2)], n_modes=1, device=device)
    state, context, action = (x.to(device) for x in inputs(3))
    with torch.no_grad(), pytest.warns(UserWarning, match="CUDA graphs"):
        model.rollout(state, context, action[:, None])
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert torch.rand(3, device=device).isfinite().all()
    assert model.rollout(state, context, action[:, None]).state.isfinite().all()
    other = make_model(built_in(), n_modes=1, device=device)
    with torch.no_grad():
        for _ in range(2):
            other.rollout(state, context, action[:, None])
    assert (len(other.graphs), len(other.graphs.refused)) == (1, 0)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_on_two_gpus_each_captures_on_its_own():
    for device in (torch.device("cuda", 0), torch.device("cuda", 1)):
        model = make_model(built_in(), n_modes=1, device=device)
        state, context, action = (x.to(device) for x in inputs(3))
        with torch.no_grad():
            model.rollout(state, context, action[:, None])
        assert (len(model.graphs), len(model.graphs.refused)) == (1, 0)
