"""Bad input gets a ValueError or TypeError that names the argument, and never a silent broadcast."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import MultiDiscrete
from tianshou.data import Batch

from layeredrl.models import ProbabilisticEnsemble
from tests.models import reference
from tests.models.networks import ConstantNet, LinearNet, TableNet, random_values
from tests.models.reference import A, C, K, M, S, box, inputs, make_batch, make_model

STATE, CONTEXT, ACTION = inputs(6)
NEXT_STATE = STATE + 0.1
ACTIONS = random_values(0, 6, 3, A)


@pytest.fixture(scope="module")
def model():
    return make_model()


def naming(name: str):
    return pytest.raises((ValueError, TypeError), match=rf"(?<![a-z_]){name}(?![a-z_])")


SETTINGS = [
    ("n_models", 0),
    ("n_models", -1),
    ("n_models", 2.5),
    ("n_modes", 0),
    ("n_particles_per_model", 0),
    ("learning_rate", 0.0),
    ("learning_rate", -1e-3),
    ("learning_rate", float("nan")),
    ("target_bn_momentum", -0.1),
    ("target_bn_momentum", 1.5),
    ("beta_nll", -0.1),
    ("beta_nll", 1.5),
    ("propagation", "ts2"),
    ("propagation", None),
    ("rollout_dtype", "bfloat16"),
    ("rollout_dtype", torch.int32),
    ("absolute_dims", (S,)),
    ("absolute_dims", (-S - 1,)),
    ("absolute_dims", (0.5,)),
    ("alike_dims", ((0, S),)),
    ("alike_dims", ((0, 1), (1, 2))),
    ("alike_dims", ((0, 0.5),)),
    ("state_space", reference.discrete(3)),
    ("state_space", None),
    ("state_space", S),
    ("context_space", reference.discrete(3)),
    ("context_space", None),
    ("action_space", MultiDiscrete([2, 3])),
    ("action_space", None),
]


@pytest.mark.parametrize(("name", "value"), SETTINGS, ids=str)
def test_wrong_settings_are_named(name, value):
    with naming(name):
        make_model(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [("sb_start_duration", 0), ("sb_start_duration", -5), ("sb_start_factor", float("nan"))],
)
def test_wrong_settings_of_the_symmetry_breaking_start_are_named(name, value):
    with naming(name):
        make_model(symmetry_breaking_start=True, **{name: value})


@pytest.mark.parametrize(
    "partial_net", [None, 3, lambda *_: "no network", lambda: None], ids=["None", "3", "text", "no-spaces"]
)
def test_a_wrong_partial_net_is_named(partial_net):
    with naming("partial_net"):
        ProbabilisticEnsemble(box(S), box(C), box(A), partial_net)


@pytest.mark.parametrize(
    "net",
    [
        LinearNet(S, C, A, K + 1),
        LinearNet(S + 1, C - 1, A, K),
        ConstantNet(torch.zeros(K, S + 1), torch.ones(K, S + 1)),
        torch.nn.Linear(S, S),
    ],
    ids=["modes", "widths", "state", "signature"],
)
def test_networks_that_break_the_contract(net):
    with pytest.raises((ValueError, TypeError), match=r"partial_net|network|forward"):
        make_model([net]).predict(STATE, CONTEXT, ACTION)


class Returns(LinearNet):
    """A network that returns something that is made of what it should return."""

    def __init__(self, change):
        super().__init__(S, C, A, K)
        self.change = [change]

    def forward(self, state, context, action):
        return self.change[0](*super().forward(state, context, action))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda normal, weights, term_prob: term_prob.sum(), r"something else than \(\(mean, std\), weights"),
        (lambda normal, weights, term_prob: (normal, weights, term_prob, term_prob), "something else"),
        (lambda normal, weights, term_prob: (normal[0], weights, term_prob), "something else"),
        (lambda normal, weights, term_prob: (normal, term_prob), f"no mode weights, but n_modes is {K}"),
    ],
    ids=["number", "four", "mean alone", "no weights"],
)
def test_errors_say_what_a_network_should_return(change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make_model([Returns(change)])


def test_members_with_different_code_are_refused():
    changes = [lambda *out: out, lambda normal, *rest: ((2 * normal[0], normal[1]), *rest)]
    with pytest.raises(ValueError, match="must differ in nothing but their parameters"):
        make_model([Returns(change) for change in changes])


ROWS = {
    "state": [STATE[:, :-1], STATE[:5], STATE[0], STATE.long(), STATE.numpy(), None, STATE[:, None]],
    "context": [CONTEXT[:, :0], CONTEXT[:5], CONTEXT[0], CONTEXT.long(), None, CONTEXT.expand(6, C + 1)],
    "action": [ACTION[:, :-1], ACTION[:5], ACTION[0], ACTION.long(), ACTION.bool(), ACTION.numpy(), None],
}
WRONG_ROWS = [(name, i) for name, values in ROWS.items() for i in range(len(values))]
METHODS = ["predict", "sample", "get_member_log_prob", "get_prob"]


def call(model, method: str, **changes):
    rows = {"state": STATE, "context": CONTEXT, "action": ACTION} | changes
    if "prob" in method:
        rows = {"next_state": NEXT_STATE} | rows
    if method == "get_member_log_prob":
        rows = {"id": 0} | rows
    return getattr(model, method)(**rows)


@pytest.mark.parametrize(
    ("method", "name", "index"),
    # All methods share the checks, so each is tested with one wrong tensor, and one of them with all.
    [*(("get_log_prob", *case) for case in WRONG_ROWS), *((method, "state", 0) for method in METHODS)],
)
def test_wrong_rows(model, method, name, index):
    # A wrong number of rows may as well be blamed on the arguments that it does not fit.
    value = ROWS[name][index]
    rows_differ = isinstance(value, torch.Tensor) and value.shape[:-1] != (6,)
    names = "state|context|action|next_state" if name == "state" and rows_differ else name
    with naming(f"(?:{names})"):
        call(model, method, **{name: value})


@pytest.mark.parametrize("method", ["get_log_prob", "get_member_log_prob"])
@pytest.mark.parametrize("value", [NEXT_STATE[:5], NEXT_STATE[:, 1:], NEXT_STATE[:1], NEXT_STATE.long(), None])
def test_wrong_next_state(model, method, value):
    with naming("next_state"):
        call(model, method, next_state=value)


@pytest.mark.parametrize("method", ["predict", "get_log_prob", "get_member_log_prob"])
@pytest.mark.parametrize("std", [torch.ones(S + 1), torch.ones(5, S), torch.ones(S).long(), 0.3, "wide"], ids=str)
def test_wrong_std(model, method, std):
    with naming("std"):
        call(model, method, std=std)


ROLLOUT_INPUTS = [
    ("initial_state", STATE[:, :-1]),
    ("initial_state", STATE[0]),
    ("initial_state", STATE.long()),
    ("initial_state", STATE.numpy()),
    ("context", CONTEXT[:5]),
    ("context", CONTEXT.expand(6, C + 1)),
    ("context", CONTEXT.long()),
    ("actions", ACTIONS[:, 0]),
    ("actions", ACTIONS[:5]),
    ("actions", ACTIONS[..., :-1]),
    ("actions", ACTIONS[:1]),
    ("actions", ACTIONS.long()),
    ("actions", ACTIONS.numpy()),
    ("generator", 3),
]


@pytest.mark.parametrize(("name", "value"), ROLLOUT_INPUTS)
def test_wrong_rollout_inputs(model, name, value):
    arguments = {"initial_state": STATE, "context": CONTEXT, "actions": ACTIONS, name: value}
    with naming(name):
        model.rollout(**arguments)


def test_discrete_actions_are_integers_in_a_last_dimension_of_one():
    model = make_model([TableNet(S, 3)], n_modes=1, action_space=reference.discrete(3))
    for action in (torch.zeros(6, 1), torch.zeros(6, dtype=torch.long), torch.zeros(6, 3, dtype=torch.long)):
        with naming("action"):
            model.predict(STATE, CONTEXT, action)
    with naming("actions"):
        model.rollout(STATE, CONTEXT, torch.zeros(6, 3, dtype=torch.long))
    with naming("act"):
        model.loss(make_batch(6))


@pytest.mark.parametrize("name", ["state", "context", "action", "next_state"])
def test_another_float_type_is_refused_by_name_or_computed_correctly(model, name):
    rows = {"state": STATE, "context": CONTEXT, "action": ACTION, "next_state": NEXT_STATE}
    expected = model.get_log_prob(**rows)[0]
    try:
        result = model.get_log_prob(**(rows | {name: rows[name].double()}))[0]
    except (ValueError, TypeError) as error:
        assert name in str(error)  # noqa: PT017
    else:
        torch.testing.assert_close(result.double(), expected.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [-1, 1.5, "many", None])
def test_wrong_step_count(model, n):
    with naming("n_total_env_steps"):
        model.set_n_total_env_steps(n)


def test_other_wrong_arguments(model):
    for member in (M, -M - 1, 0.5, None):
        with naming("id"):
            call(model, "get_member_log_prob", id=member)
    for method in ("get_log_prob", "get_member_log_prob"):
        with naming("transform"):
            call(model, method, transform="whiten", std=torch.ones(S))
    with naming("generator"):
        call(model, "sample", generator=np.random.default_rng(0))


KEYS = ["state", "context", "act", "state_next", "terminated"]


@pytest.mark.parametrize(("key", "bad"), [*((key, float("nan")) for key in [*KEYS, "weight"]), ("state", float("inf"))])
def test_numbers_that_are_not_finite_are_named_with_key_and_row(key, bad):
    batch = make_batch(60, weight=torch.ones(60))
    batch[key].view(60, -1)[37, -1] = bad
    model = make_model(weighted_loss=True, create_optimizer=True).train()
    for method, argument in ((model.loss, batch), (model.learn, [batch])):
        with pytest.raises((ValueError, TypeError), match=rf"(?s)(?=.*\b{key}\b)(?=.*\b37\b)"):
            method(argument)


WRONG_COLUMNS = [
    *((key, None) for key in [*KEYS, "weight"]),
    *((key, make_batch(6)[key][:1]) for key in KEYS),
    *((key, make_batch(6)[key][:, :width]) for key, width in [("context", 0), ("act", A - 1), ("state_next", 1)]),
    ("terminated", np.zeros(6)),
    *(("weight", torch.ones(shape)) for shape in [(6, 2), (5,), (1,), (6, 6)]),
    *(("validity_mask", torch.ones(shape).bool()) for shape in [(5,), (1,), (6, 6)]),
]


@pytest.mark.parametrize(("key", "value"), WRONG_COLUMNS)
def test_wrong_columns_of_a_batch(key, value):
    batch = make_batch(6, weight=torch.ones(6))
    batch[key] = value
    if value is None:
        del batch.__dict__[key]
    # A wrong number of rows may also be attributed to the tensors that it does not fit.
    with naming(f"(?:{'|'.join(KEYS)})" if key in KEYS and value is not None and len(value) == 1 else key):
        make_model(weighted_loss=True).loss(batch)


@pytest.mark.parametrize("key", ["terminated", "validity_mask"])
def test_a_column_never_broadcasts(model, key):
    batch = make_batch(6, validity_mask=torch.tensor([1.0, 0, 1, 1, 1, 0]).bool())
    expected = model.loss(batch)
    batch[key] = batch[key][:, None]
    try:
        result = model.loss(batch)
    except (ValueError, TypeError) as error:
        assert key in str(error)  # noqa: PT017
    else:
        torch.testing.assert_close(result, expected)


def test_wrong_batches():
    model = make_model(create_optimizer=True)
    for batch in (None, {"state": STATE}, [make_batch(3)], STATE):
        with naming("batch"):
            model.loss(batch)
    for batch_lst in (None, make_batch(3), STATE):
        with naming("batch_lst"):
            model.learn(batch_lst)
    with pytest.raises((ValueError, TypeError)):
        model.loss(Batch())
