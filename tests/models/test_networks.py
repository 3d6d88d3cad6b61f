"""Ensembles of any network give the results of their members called one after the other."""

import copy
import warnings

import pytest
import torch
from tianshou.data import Batch
from torch.nn.functional import binary_cross_entropy
from torch.optim import SGD

from layeredrl.models import ProbabilisticEnsemble
from layeredrl.models.nets import GaussianMixtureMLP
from tests.models import reference
from tests.models.networks import (
    BranchingNet,
    ConstantNet,
    ElementwiseNet,
    LimitedNet,
    OddNet,
    Recorder,
    RegularizedNet,
    SequentialNet,
    TwoOutputNet,
    three_space_factory,
)
from tests.models.reference import A, C, K, M, S, box, inputs, make_batch

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def mixture_mlp(state_space, context_space, action_space, n_modes):
    return GaussianMixtureMLP(state_space, context_space, action_space, n_modes, hidden=(16, 16))


def sequential(kind, cls=SequentialNet):
    def build(state_space, context_space, action_space, n_modes):
        sizes = (space.shape[0] for space in (state_space, context_space, action_space))
        return cls(*sizes, n_modes, kind=kind)

    return build


def elementwise(cls, **options):
    seeds = iter(range(0, 1000, 10))
    return lambda state_space, *_: cls(state_space.shape[0], seed=next(seeds), **options)


ODD = [
    "custom_linear",
    "weight_norm",
    "tied",
    "shared_weight",
    "bound_method",
    "direct_weight",
    "frozen",
    "alike",
    "scalar",
]
FACTORIES = {
    "mixture_mlp": (mixture_mlp, K),
    "plain": (sequential("none"), K),
    "layer_norm": (sequential("layer_norm"), K),
    "dropout": (sequential("dropout"), K),
    "batch_norm": (sequential("batch_norm"), K),
    "elementwise": (elementwise(ElementwiseNet), 1),
    "two_outputs": (elementwise(TwoOutputNet), 1),
    "two_outputs_with_mode_axis": (elementwise(TwoOutputNet, mode_axis=True), 1),
    "constant": (lambda *_: ConstantNet(torch.randn(K, S), torch.rand(K, S) + 0.1, term_prob=0.3), K),
    **{kind: (sequential(kind, OddNet), K) for kind in ODD},
    "regularized": (lambda *_: RegularizedNet(S, C, A, K, seed=int(torch.randint(1000, ()))), K),
}


def build(factory, n_modes: int = K, n_models: int = M, **settings):
    """The ensemble in evaluation mode, and copies of its networks as they were made."""
    recorder = Recorder(factory)
    settings = {"normalize_targets": False} | settings
    action_space = settings.pop("action_space", box(A))
    model = ProbabilisticEnsemble(box(S, 10.0), box(C), action_space, recorder, n_models, n_modes, 2, **settings).eval()
    return model, recorder.nets


def check(model, nets, rows=inputs):
    """Compare all methods with the loop over members; states are positive, so that no branch flips."""
    state, context, action = rows(6)
    state = state.abs()
    mean, weights, std, term_prob = model.predict(state, context, action)
    for i, net in enumerate(nets):
        expected = reference.outputs(net, state, context, action)
        torch.testing.assert_close(mean[:, i].double(), state[:, None].double() + expected[0], **CLOSE)
        torch.testing.assert_close(std[:, i].double(), expected[1], **CLOSE)
        torch.testing.assert_close(weights[:, i].double(), expected[2], **CLOSE)
        member = model.get_member_log_prob(i, state, context, action, state + 0.1)
        expected = reference.log_prob([net], state, context, action, state + 0.1)
        torch.testing.assert_close(member[0].double(), expected, **CLOSE)
    torch.testing.assert_close(term_prob.double(), reference.term_prob(nets, state, context, action), **CLOSE)
    density = model.get_log_prob(state, context, action, state + 0.1)[0]
    expected = reference.log_prob(nets, state, context, action, state + 0.1)
    torch.testing.assert_close(density.double(), expected, **CLOSE)
    with torch.no_grad():
        states, _ = reference.rollout(nets, state, context, action[:, None])
        result = model.rollout(state, context, action[:, None], deterministic=True)
    torch.testing.assert_close(result.state[:, :, 0].double(), states, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", FACTORIES)
def test_predictions_equal_those_of_the_members_one_by_one(name):
    factory, n_modes = FACTORIES[name]
    with warnings.catch_warnings():
        # All can be batched in evaluation mode, but a loop is acceptable for two of them.
        warnings.simplefilter("ignore" if name in ("weight_norm", "shared_weight") else "error")
        model, nets = build(factory, n_modes)
        check(model, nets)


def output_log_prob(out, target) -> torch.Tensor:
    """Log density of what one member's network returned."""
    (mean, std), *rest = out
    if len(rest) == 1:
        return torch.distributions.Normal(mean, std).log_prob(target).sum(-1)
    parts = torch.distributions.Normal(mean, std).log_prob(target.unsqueeze(-2)).sum(-1)
    return (rest[0].log() + parts).logsumexp(-1)


def test_members_are_initialised_in_order_from_the_global_generator():
    torch.manual_seed(0)
    model = ProbabilisticEnsemble(box(S), box(C), box(A), mixture_mlp, M, K, normalize_targets=False).eval()
    torch.manual_seed(0)
    nets = [mixture_mlp(box(S), box(C), box(A), K) for _ in range(M)]
    check(model, nets)


def test_a_factory_of_three_spaces():
    model = ProbabilisticEnsemble(box(S), box(C), box(A), three_space_factory, 2, normalize_targets=False)
    check(model.eval(), [three_space_factory(box(S), box(C), box(A))] * 2)


def test_members_are_not_confused_with_rows_or_dimensions_of_the_same_number():
    """Raw parameter vectors meet the data elementwise: nothing broadcasts over the wrong axis."""
    factory, _ = FACTORIES["elementwise"]
    model, nets = build(factory, 1, n_models=S)
    check(model, nets, lambda n: inputs(S))


def test_control_flow_on_data_works_and_warns_once():
    class Branching(BranchingNet):
        """A class of its own, should the warning be given once per class."""

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model, nets = build(elementwise(Branching), 1)
        check(model, nets)
        for sign in (1, -1):
            state, context, action = inputs(6)
            state = sign * state.abs()
            mean = model.predict(state, context, action)[0]
            expected = torch.stack([reference.outputs(net, state, context, action)[0] for net in nets], 1)
            torch.testing.assert_close(mean.double(), (state[:, None, None] + expected), **CLOSE)
        loss = model.loss(make_batch(6))
        loss.backward()
    assert len(caught) == 1, [str(w.message) for w in caught]
    message = str(caught[0].message)
    assert "Branching" in message or "partial_net" in message
    assert all(p.grad is not None for p in model.get_parameters())


def test_batch_norm_in_training_mode_works_and_warns_once():
    class Own(SequentialNet):
        pass

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model, nets = build(lambda *_: Own(S, C, A, K, kind="batch_norm"))
        batch = make_batch(20)
        model.train()
        loss = model.loss(batch)
        model.eval()
        check_after = copy.deepcopy(nets)
        expected = sum(member_loss(net.train(), batch) for net in check_after)
        torch.testing.assert_close(loss, expected, **CLOSE)
        check(model, check_after)  # the running statistics moved once, member by member
        model.train().loss(batch)
    assert len(caught) == 1, [str(w.message) for w in caught]


def member_loss(net, batch: Batch) -> torch.Tensor:
    """Loss of one member, over all rows at once because layers may normalise over them."""
    target = batch.state_next - batch.state
    out = net(batch.state, batch.context, batch.act)
    cross_entropy = binary_cross_entropy(out[-1], batch.terminated, reduction="none")
    loss = (cross_entropy - output_log_prob(out, target)).mean()
    return loss + (net.regularization() if hasattr(net, "regularization") else 0.0)


def test_dropout_is_active_in_training_mode_only():
    with warnings.catch_warnings(record=True):
        model, nets = build(sequential("dropout"))
        state, context, action = inputs(6)
        quiet = [model.predict(state, context, action)[0] for _ in range(2)]
        torch.testing.assert_close(quiet[0], quiet[1])
        model.train()
        means = torch.stack([model.predict(state, context, action)[0] for _ in range(5)]).detach()
    assert (means.std(0) > 0).any()
    moves = means[0] - quiet[0].detach()
    assert not torch.allclose(moves[:, 0], moves[:, 1])  # every member drops its own units
    assert not torch.allclose(moves[0], moves[1])  # and so does every row
    check(model.eval(), nets)


def check_or_refused(factory, rows):
    """Members that are no copies of each other are either evaluated correctly or refused at construction."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model, nets = build(factory, 1, n_models=3)
        except (ValueError, TypeError) as error:
            assert "partial_net" in str(error)  # noqa: PT017
        else:
            check(model, nets, rows)


@pytest.mark.parametrize("limits", [(0.0, 0.3, -0.3), (30.0, 50.0, 70.0)], ids=["near", "far"])
def test_members_that_differ_in_plain_attributes(limits):
    nets = iter([LimitedNet(limit) for limit in limits])
    check_or_refused(lambda *_: next(nets), lambda n: (torch.linspace(-80, 80, n * S).reshape(n, S), *inputs(n)[1:]))


def test_a_network_that_can_be_batched_causes_no_warning():
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            build(FACTORIES["regularized"][0])  # transposes its parameters with `.T`
    finally:
        torch.set_warn_always(False)
    assert not caught, [str(w.message) for w in caught]


TRAINED = ["mixture_mlp", "plain", "layer_norm", "elementwise", "two_outputs", "regularized", *ODD]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "n_models"),
    [
        *((name, M) for name in TRAINED),
        *(("alike", 1), ("alike", 6), ("scalar", 3), ("bound_method", 2)),
    ],
)
def test_training_moves_each_member_as_if_it_were_alone(name, n_models):
    """Gradient descent on the loss of all, and on each member's own; then predictions are compared."""
    factory, n_modes = FACTORIES[name]
    model, nets = build(factory, n_modes, n_models)
    batches = [make_batch(16, seed=i) for i in range(2)]
    optimizers = [SGD([p for p in net.parameters() if p.requires_grad], lr=0.05) for net in nets]
    optimizers.append(SGD(model.get_parameters(), lr=0.05))
    for batch in batches:
        for optimizer in optimizers:
            optimizer.zero_grad()
        model.train().loss(batch).backward()
        for net in nets:
            member_loss(net.train(), batch).backward()
        for optimizer in optimizers:
            optimizer.step()
    check(model.eval(), nets)
