"""Names, orders, defaults, shapes, purity and persistence of the Models API."""

import inspect
import io
from abc import ABC

import pytest
import torch
from tianshou.data import Batch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from layeredrl.models import Model, ProbabilisticEnsemble
from layeredrl.models.nets import GaussianMixtureMLP
from tests.models import reference
from tests.models.networks import DriftNet, Recorder, SequentialNet, TableNet, random_values
from tests.models.reference import A, C, K, M, S, box, inputs, linear_nets, make_batch, make_model

REQUIRED = inspect.Parameter.empty
CPU = torch.device("cpu")
ROW = [("state", REQUIRED), ("context", REQUIRED), ("action", REQUIRED)]
DENSITY_OPTIONS = [("std", None), ("loss_mode", False), ("transform", None)]
ROLLOUT = [
    ("initial_state", REQUIRED),
    ("context", REQUIRED),
    ("actions", REQUIRED),
    ("deterministic", False),
]
TRANSITION = [*ROW, ("next_state", REQUIRED)]
SHARED = {
    "get_prob": TRANSITION,
    "get_parameters": [],
    "learn": [("batch_lst", REQUIRED)],
    "loss": [("batch", REQUIRED)],
    "predict": [*ROW, ("std", None)],
    "sample": ROW,
    "set_n_total_env_steps": [("n_total_env_steps", REQUIRED)],
}
MODEL_SIGNATURES = SHARED | {
    "__init__": [("n_models", 1), ("n_particles_per_model", 1), ("device", CPU)],
    "get_log_prob": TRANSITION,
    "rollout": ROLLOUT,
}
ENSEMBLE_SIGNATURES = SHARED | {
    "__init__": [
        ("state_space", REQUIRED),
        ("context_space", REQUIRED),
        ("action_space", REQUIRED),
        ("partial_net", REQUIRED),
        ("n_models", 1),
        ("n_modes", 1),
        ("n_particles_per_model", 1),
        ("learning_rate", 0.001),
        ("create_optimizer", False),
        ("device", CPU),
        ("predict_delta", True),
        ("normalize_targets", True),
        ("target_bn_momentum", 0.01),
        ("weighted_loss", False),
        ("symmetry_breaking_start", False),
        ("sb_start_duration", 100000),
        ("sb_start_factor", 1.5),
        ("partition_batch", False),
    ],
    "get_log_prob": [*TRANSITION, *DENSITY_OPTIONS],
    "get_member_log_prob": [("id", REQUIRED), *TRANSITION, *DENSITY_OPTIONS],
    "rollout": [*ROLLOUT, ("loss_mode", False)],
}
CASES = [(Model, name, wanted) for name, wanted in MODEL_SIGNATURES.items()]
CASES += [(ProbabilisticEnsemble, name, wanted) for name, wanted in ENSEMBLE_SIGNATURES.items()]


@pytest.mark.parametrize(("owner", "name", "wanted"), CASES, ids=lambda x: getattr(x, "__name__", None))
def test_signatures_are_the_given_ones(owner, name, wanted):
    parameters = list(inspect.signature(getattr(owner, name)).parameters.values())
    assert parameters.pop(0).name == "self"
    positional = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [(p.name, p.default) for p in positional] == wanted
    extras = [p for p in parameters if p not in positional]
    assert all(p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD) for p in extras)
    assert all(p.default is not REQUIRED for p in extras if p.kind is p.KEYWORD_ONLY)


@pytest.mark.parametrize("name", ["rollout", "sample"])
def test_generator_is_keyword_only(name):
    parameter = inspect.signature(getattr(ProbabilisticEnsemble, name)).parameters["generator"]
    assert parameter.kind is parameter.KEYWORD_ONLY
    assert parameter.default is None


def test_extra_settings_are_accepted_by_keyword_and_unknown_ones_are_not():
    make_model(propagation="tsinf", absolute_dims=(0,))
    with pytest.raises(TypeError, match="colour"):
        make_model(colour="red")


def test_model_is_an_abstract_module():
    assert issubclass(Model, ABC)
    assert issubclass(Model, nn.Module)
    assert issubclass(ProbabilisticEnsemble, Model)
    assert Model.__abstractmethods__ == {
        *("get_log_prob", "get_parameters", "loss", "predict", "rollout", "sample"),
    }
    with pytest.raises(TypeError, match="abstract"):
        Model()


class StandardNormalModel(Model):
    """The least that a person has to write; the next state is standard normal."""

    def get_log_prob(self, state, context, action, next_state):
        density = torch.distributions.Normal(0.0, 1.0).log_prob(next_state).sum(-1)
        return density, torch.zeros_like(density), {"note": 1}

    def get_parameters(self):
        return self.parameters()

    def loss(self, batch):
        return -self.get_log_prob(batch.state, batch.context, batch.act, batch.state_next)[0].mean()

    def predict(self, state, context, action, std=None):
        raise NotImplementedError

    def rollout(self, initial_state, context, actions, deterministic=False):
        raise NotImplementedError

    def sample(self, state, context, action):
        raise NotImplementedError


def test_a_minimal_model_gets_probability_and_step_count_for_free():
    model = StandardNormalModel(2, 3, CPU)
    state, context, action = inputs(6)
    prob, term_prob, info = model.get_prob(state, context, action, state)
    torch.testing.assert_close(prob, model.get_log_prob(state, context, action, state)[0].double().exp())
    assert term_prob.shape == (6,)
    assert info == {"note": 1}
    model.set_n_total_env_steps(12)
    (key,) = [key for key in model.state_dict() if "n_total_env_steps" in key]
    assert int(model.state_dict()[key]) == 12


@pytest.mark.parametrize("context_dim", [0, C])
@pytest.mark.parametrize("kind", ["linear", "mixture_mlp"])
def test_shapes(kind, context_dim):
    spaces = {"context_space": box(context_dim)}
    if kind == "linear":
        model = make_model(linear_nets(context_dim=context_dim), n_particles_per_model=6, **spaces)
    else:
        net = Recorder(lambda *args: GaussianMixtureMLP(*args, hidden=(16, 16)))
        model = ProbabilisticEnsemble(box(S, 10.0), box(context_dim), box(A), net, M, K, 6)
    state, context, action = inputs(7, context_dim=context_dim)
    mean, weights, std, term_prob = model.predict(state, context, action)
    assert mean.shape == std.shape == (7, M, K, S)
    assert weights.shape == (7, M, K)
    assert term_prob.shape == (7,)
    torch.testing.assert_close(weights.sum(-1), torch.ones(7, M))
    assert model.sample(state, context, action).shape == (7, S)
    density, term_prob, info = model.get_log_prob(state, context, action, state)
    assert density.shape == term_prob.shape == (7,)
    assert info["means"].shape == (7, M, S)
    density, term_prob, mean = model.get_member_log_prob(1, state, context, action, state)
    assert density.shape == term_prob.shape == (7,)
    assert mean.shape == (7, S)
    actions = random_values(0, 7, 3, A).clamp(-1, 1)
    for deterministic in (False, True):
        result = model.rollout(state, context, actions, deterministic)
        assert isinstance(result, Batch)
        assert result.state.shape == (7, M, 6, 4, S)
        assert result.state_mean.shape == result.state_var.shape == (7, M, 4, S)
        assert result.state_epistemic_var.shape == result.state_aleatoric_var.shape == (7, 4, S)
        assert result.term_prob.shape == result.diverged.shape == (7, M, 6, 3)
        assert result.diverged.dtype == torch.bool


def test_discrete_actions():
    nets = [TableNet(S, 3, seed=i) for i in range(M)]
    model = make_model(nets, n_modes=1, action_space=reference.discrete(3), n_particles_per_model=2)
    state, context, _ = inputs(6)
    action = torch.tensor([0, 1, 2, 2, 1, 0])[:, None]
    next_state = state + 0.1
    density, term_prob, _ = model.get_log_prob(state, context, action, next_state)
    expected = reference.log_prob(nets, state, context, action, next_state)
    torch.testing.assert_close(density.double(), expected, rtol=1e-5, atol=1e-5)
    expected = reference.term_prob(nets, state, context, action)
    torch.testing.assert_close(term_prob.double(), expected, rtol=1e-5, atol=1e-6)
    mean, *_ = model.predict(state, context, action)
    torch.testing.assert_close(mean[2, 1, 0], nets[1].table[2] + 0.9 * state[2])
    assert model.sample(state, context, action).shape == (6, S)
    actions = torch.arange(6 * 4).reshape(6, 4, 1) % 3
    states, _ = reference.rollout(nets, state, context, actions)
    got = model.rollout(state, context, actions, deterministic=True).state
    torch.testing.assert_close(got[:, :, 1].double(), states, rtol=1e-4, atol=1e-5)
    batch = make_batch(6)
    batch.act = action
    torch.testing.assert_close(model.loss(batch).double(), reference.loss(nets, batch), rtol=1e-5, atol=1e-5)


def everything(model: ProbabilisticEnsemble, seed: int = 100) -> dict[str, torch.Tensor]:
    """All that the public methods return for some inputs, by name."""
    state, context, action = inputs(4, seed=seed)
    actions = random_values(seed, 4, 3, A).clamp(-1, 1)
    found = dict(zip(("mean", "weights", "std", "term"), model.predict(state, context, action), strict=True))
    found["log_prob"], found["log_term"], info = model.get_log_prob(state, context, action, state + 0.1)
    found["means"] = info["means"]
    member = model.get_member_log_prob(1, state, context, action, state + 0.1)
    found |= dict(zip(("member_log_prob", "member_term", "member_mean"), member, strict=True))
    found["prob"] = model.get_prob(state, context, action, state)[0]
    found["sample"] = model.sample(state, context, action, generator=torch.Generator().manual_seed(seed))
    for deterministic in (False, True):
        generator = torch.Generator().manual_seed(seed)
        result = model.rollout(state, context, actions, deterministic, generator=generator)
        found |= {f"{key}_{deterministic}": result[key] for key in result.get_keys()}
    found["loss"] = model.loss(make_batch(5, seed=seed))
    return found


@pytest.mark.parametrize("gradients", [True, False])
def test_what_is_returned_stays_as_it_was(gradients):
    model = make_model(n_particles_per_model=2)
    with torch.set_grad_enabled(gradients):
        first = everything(model)
        kept = {key: value.detach().clone() for key, value in first.items()}
        everything(model, seed=300)
    for key, value in kept.items():
        assert torch.equal(first[key], value), key


def test_gradient_mode_and_repetition_change_nothing():
    model = make_model(n_particles_per_model=2)
    with_gradients = everything(model)
    with torch.no_grad():
        for _ in range(2):
            for key, value in everything(model).items():
                torch.testing.assert_close(value, with_gradients[key], rtol=1e-5, atol=1e-5, msg=key)


def test_inputs_are_never_modified():
    model = make_model(create_optimizer=True, n_particles_per_model=2)
    state, context, action = inputs(4)
    actions, next_state = random_values(1, 4, 3, A).clamp(-1, 1), state + 0.1
    std, batch = torch.full((S,), 0.3), make_batch(6)
    tensors = [state, context, action, actions, next_state, std, *batch.values()]
    copies, keys = [x.clone() for x in tensors], set(batch.get_keys())
    model.predict(state, context, action, std)
    model.sample(state, context, action)
    model.get_log_prob(state, context, action, next_state, std)
    model.get_member_log_prob(0, state, context, action, next_state, std)
    model.get_prob(state, context, action, next_state)
    with torch.no_grad():
        model.rollout(state, context, actions)
    model.rollout(state, context, actions, deterministic=True)
    model.train()
    model.loss(batch)
    model.learn([batch])
    assert all(torch.equal(x, y) for x, y in zip(tensors, copies, strict=True))
    assert set(batch.get_keys()) == keys


def test_expanded_and_strided_inputs():
    model = make_model()
    state, context, action = (x.expand(5, -1) for x in inputs(1))
    actions = random_values(1, A, 6, 5).clamp(-1, 1).permute(2, 1, 0)
    with torch.no_grad():
        torch.testing.assert_close(
            model.predict(state, context, action)[0],
            model.predict(*(x.clone() for x in (state, context, action)))[0],
        )
        got = model.rollout(state, context, actions, deterministic=True).state
        wanted = model.rollout(state.clone(), context.clone(), actions.contiguous(), deterministic=True).state
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("kind", ["layer_norm", "none"])
def test_state_dict_round_trip(kind):
    def build(seed):
        nets = [SequentialNet(S, C, A, K, kind=kind) for _ in range(M)]
        torch.manual_seed(seed)
        return make_model(nets, create_optimizer=True, normalize_targets=True, n_particles_per_model=2, **settings)

    settings = {"symmetry_breaking_start": True, "sb_start_duration": 100}
    torch.manual_seed(5)
    model, other = build(0), build(1)
    model.train().learn([make_batch(20, seed=i, scale=3.0) for i in range(3)])
    model.eval().set_n_total_env_steps(70)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    before = everything(other)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert not torch.allclose(before["mean"], everything(other)["mean"])
    for key, value in everything(model).items():
        torch.testing.assert_close(everything(other)[key], value, rtol=1e-5, atol=1e-5, msg=key)
    (key,) = [key for key in model.state_dict() if key.endswith("n_total_env_steps")]
    assert int(other.state_dict()[key]) == 70


def test_new_weights_take_effect_without_gradients_too():
    nets = [SequentialNet(S, C, A, K, kind="none") for _ in range(M)]
    model = make_model(nets, create_optimizer=True, learning_rate=0.05)
    state, context, action = inputs(4)
    with torch.no_grad():
        before = model.rollout(state, context, action[:, None], deterministic=True).state
    model.train().learn([make_batch(8)])
    model.eval()
    expected = model.rollout(state, context, action[:, None], deterministic=True).state
    with torch.no_grad():
        after = model.rollout(state, context, action[:, None], deterministic=True).state
    assert not torch.allclose(after, before)
    torch.testing.assert_close(after, expected)


def test_learn_takes_one_step_per_batch_and_returns_the_last_loss():
    model, twin = (make_model(create_optimizer=True, learning_rate=0.01).train() for _ in range(2))
    batches = [make_batch(6, seed=i) for i in range(3)]
    steps = []
    handle = register_optimizer_step_post_hook(lambda *_: steps.append(1))
    result = model.learn(batches)
    handle.remove()
    assert len(steps) == 3
    twin.learn(batches[:2])
    expected = twin.loss(batches[2])
    torch.testing.assert_close(result, expected.detach())
    assert result.shape == ()
    assert not result.requires_grad
    before = model.loss(batches[0]).item()
    for _ in range(50):
        model.learn(batches[:1])
    assert model.loss(batches[0]).item() < before - 1


def test_learning_without_an_optimizer_names_the_setting():
    with pytest.raises(Exception, match="create_optimizer"):
        make_model().learn([make_batch(4)])


def test_parameters_are_those_of_the_networks():
    nets = [DriftNet(float(i)) for i in range(M)]
    model = make_model(nets, n_modes=1, action_space=box(2), symmetry_breaking_start=True)
    iterator = model.get_parameters()
    assert iter(iterator) is iterator
    parameters = list(iterator)
    assert sum(p.numel() for p in parameters) == sum(p.numel() for net in nets for p in net.parameters())
    assert all(p.requires_grad and p.is_leaf for p in parameters)
