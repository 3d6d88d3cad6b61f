"""A latent world model answers what any world model answers."""

import pytest
import torch
from gymnasium import spaces
from torch import nn

from layeredrl.world_model import LatentConfig
from tests.world_model.latent_tasks import make_latent


def plain_score(world, obs, actions):
    """Score of one sequence of actions (H, A) from an observation (O,), step by step."""
    state, total, alive = world.encode(obs)[0], 0.0, 1.0
    for t, action in enumerate(actions):
        logits = world.reward_logits(torch.cat([state, action]))
        total += 0.9**t * alive * world.scale.decode(logits)
        state = world.dynamics.net(torch.cat([state, action]))
        if world.dynamics.ends is not None:
            alive = alive * (1 - world.dynamics.ends(state).sigmoid()[0])
    best = world.policy.net(state)[:2].tanh()
    values = world.scale.decode(world.critics(torch.cat([state, best])[None]))[:, 0]
    return total + 0.9 ** len(actions) * alive * values[world.pair].mean()


@pytest.mark.parametrize("terminations", [True, False])
def test_score_is_the_discounted_reward_while_alive_and_the_value_of_two_critics(terminations):
    world = make_latent(terminations=terminations)
    world.pair.copy_(torch.tensor([2, 0]))
    obs, actions = torch.randn(3, 2), torch.rand(3, 4, 5, 2) * 2 - 1
    with torch.no_grad():
        scores = world.score(obs, actions)
        expected = [[plain_score(world, obs[i], candidate) for candidate in actions[i]] for i in range(3)]
        whole = super(type(world), world).score_from(*world.encode(obs), actions)
    torch.testing.assert_close(scores, torch.tensor(expected), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scores, whole)


def test_candidates_that_are_not_finite_score_minus_infinity():
    world = make_latent()
    actions = torch.zeros(1, 3, 4, 2)
    actions[0, 1, 2] = torch.nan
    assert world.score(torch.zeros(1, 2), actions).isfinite().tolist() == [[True, False, True]]


def test_rollout_has_what_planners_and_pictures_read():
    world = make_latent()
    result = world.rollout(torch.randn(3, 2), torch.rand(3, 4, 2))
    assert result.state.shape == (3, 1, 1, 5, 16)
    for key in ("reward", "alive", "term_prob", "diverged"):
        assert result[key].shape == (3, 1, 1, 4)
    assert result.state_mean.shape == (3, 1, 5, 16)
    torch.testing.assert_close(result.state.unflatten(-1, (8, 2)).sum(-2), torch.ones(3, 1, 1, 5, 2))


def test_proposals_follow_the_policy_through_the_model():
    world = make_latent()
    obs = torch.randn(3, 2)
    actions = world.propose(obs, 4, 3, torch.Generator().manual_seed(1))
    assert actions.shape == (3, 4, 3, 2)
    generator = torch.Generator().manual_seed(1)
    state = world.encode(obs)[0].repeat_interleave(4, 0)
    for t in range(3):
        expected = world.policy.act(state, torch.randn((12, 2), generator=generator))
        torch.testing.assert_close(actions[:, :, t].flatten(0, 1), expected)
        state = world.dynamics.next(state, expected)


class Doubled(nn.Linear):
    def forward(self, obs):
        return super().forward(obs).double()


def test_an_encoder_of_ones_own():
    world = make_latent(encoder=lambda n_obs, width: nn.Sequential(nn.Linear(n_obs, 5), nn.Tanh(), nn.Linear(5, width)))
    assert world.encode(torch.randn(3, 4, 2))[0].shape == (3, 4, 16)
    with pytest.raises(ValueError, match=r"encoder returned shape \(1, 5\) for \(1, 2\), expected \(1, 16\)"):
        make_latent(encoder=lambda n_obs, width: nn.Linear(n_obs, 5))
    with pytest.raises(ValueError, match=r"the encoder fails on observations of shape \(1, 2\): mat1 and mat2"):
        make_latent(encoder=lambda n_obs, width: nn.Linear(7, width))
    with pytest.raises(TypeError, match="the encoder returned a tuple, expected a tensor"):
        make_latent(encoder=nn.GRU)
    with pytest.raises(TypeError, match=r"the encoder's output has dtype torch.float64, expected torch.float32"):
        make_latent(encoder=Doubled)


def test_the_model_interface_of_its_dynamics():
    dynamics = make_latent().dynamics
    state, action, nothing = torch.rand(4, 16), torch.rand(4, 2), torch.zeros(4, 0)
    after = dynamics.sample(state, nothing, action)
    mean, weights, std, term_prob = dynamics.predict(state, nothing, action)
    assert torch.equal(mean[:, 0, 0], after)
    assert weights.shape == (4, 1, 1)
    assert not std.any()
    assert ((term_prob > 0) & (term_prob < 1)).all()
    with pytest.raises(NotImplementedError, match="no density"):
        dynamics.get_log_prob(state, nothing, action, after)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"latent_dim": 12}, "latent_dim is 12, expected a multiple of group"),
        ({"n_critics": 1}, "n_critics is 1, expected at least 2"),
        ({"discount": 1.5}, "discount is 1.5"),
        ({"group": 1}, "group is 1, expected at least 2"),
        ({"hidden": (8, 0)}, "hidden is"),
        ({"activation": "tanh"}, "activation is 'tanh', expected one of mish, silu, relu"),
    ],
)
def test_refused_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        LatentConfig(**settings)


def test_unknown_size():
    with pytest.raises(ValueError, match="size is 'huge', expected one of tiny, small, released"):
        LatentConfig.of("huge")


def test_discrete_actions_are_refused():
    with pytest.raises((TypeError, ValueError), match="Discrete"):
        make_latent(spaces.Discrete(3))
