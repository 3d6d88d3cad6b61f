"""A level whose plans end in critics' values and compete with those of a policy."""

import numpy as np
import pytest
import torch
from tianshou.algorithm.modelfree.redq import REDQ, REDQPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.utils.net.common import EnsembleLinear, Net
from tianshou.utils.net.continuous import ContinuousActorProbabilistic, ContinuousCritic

from layeredrl.levels import ExplorationConfig, GuidedLevel, ImaginingLevel, PolicyLearningConfig
from layeredrl.models import FitConfig
from layeredrl.off_policy import SACConfig, TD3Config
from layeredrl.planners import ICEM, ICEMConfig
from layeredrl.storage import Checkpoints
from layeredrl.world_model import Imagination, ImaginationConfig, ModelLearningConfig, WorldModelLearner
from tests.world_model.points import ACTION, E, make_world, random_rows

CPU = torch.device("cpu")
FITTING = ModelLearningConfig(n_random_steps=12, fit_every=6, fit=FitConfig(epochs=2, batch_size=16), replay_size=300)
LEARNING = PolicyLearningConfig(n_random_steps=0, updates_per_transition=0.5, batch_size=20, report_every=6)
PLANNER = ICEM(ACTION, ICEMConfig(horizon=4, n_samples=8, n_iterations=2, n_elites=4))


def make(*, algorithm=SACConfig, real_share=1.0, reward_scale=0.5, **settings):
    world = make_world(reward=None)
    policy = ImaginingLevel(
        algorithm(hidden=(8,), discount=0.9).build(2, ACTION, CPU),
        ACTION,
        WorldModelLearner(world, FITTING),
        Imagination(world, ImaginationConfig(n_branches=30, n_steps=(2, 2)), 0.9),
        real_share=real_share,
        reward_scale=reward_scale,
        learning=LEARNING,
    )
    return GuidedLevel(policy, PLANNER, **{"n_proposals": 3} | settings)


def train(level, n_steps, start=0):
    metrics = {}
    for i, row in enumerate(random_rows(n_steps, seed=start)):
        level.observe(row, np.arange(E))
        metrics |= level.learn(E * (start + i + 1))
    return metrics


def act(level, explore):
    generator = torch.Generator().manual_seed(0)
    return level.act(torch.ones(E, 2), None, level.initial_memory(E), explore=explore, generator=generator)


@pytest.mark.parametrize("real_share", [1.0, 0.25])
def test_model_policy_and_critics_learn_from_what_planning_collects(real_share):
    level = make(real_share=real_share)
    metrics = train(level, 8)
    assert level.policy.n_updates > 0
    assert {"model/loss", "policy/critic_bias"} <= metrics.keys()
    assert ("imagination/length" in metrics) == (real_share < 1)
    assert level.replay is level.policy.replay
    assert len(level.replay) == 24


@pytest.mark.parametrize("algorithm", [SACConfig, TD3Config])
def test_plans_end_in_the_lower_critic_at_the_policys_action(algorithm):
    level = make(algorithm=algorithm)
    state, context = torch.randn(2, 5, 2), torch.zeros(2, 5, 0)
    assert not level.world.objective.value(state, context).any()  # nothing is known before the first update
    train(level, 8)
    inputs = level.policy.standardizer(state.view(-1, 2))
    critics, policy = level.policy.algorithm.critic, level.policy.algorithm.policy
    action = policy.actor(inputs)[0]
    action = action[0].tanh() if algorithm is SACConfig else action
    with torch.no_grad():
        expected = critics(inputs, action).amin(0) / 0.5
        torch.testing.assert_close(level.value(state, context), expected.view(2, 5))
        score = level.world.score(state[:, 0], torch.zeros(2, 3, 4, 2))
        level.world.objective.value = None
        assert not torch.equal(score, level.world.score(state[:, 0], torch.zeros(2, 3, 4, 2)))
        level.policy.algorithm.pessimism = 0.0
        torch.testing.assert_close(level.value(state, context), (critics(inputs, action).mean(0) / 0.5).view(2, 5))


def redq():
    """An algorithm of tianshou with an ensemble of critics and a stochastic policy that is none of SAC's."""

    def ensemble(n_in, n_out):
        return EnsembleLinear(4, n_in, n_out)

    net = Net(state_shape=(2,), action_shape=(2,), hidden_sizes=(8,), concat=True, linear_layer=ensemble)
    mean = Net(state_shape=(2,), hidden_sizes=(8,))
    actor = ContinuousActorProbabilistic(preprocess_net=mean, action_shape=(2,), unbounded=True, conditioned_sigma=True)
    return REDQ(
        policy=REDQPolicy(actor=actor, action_space=ACTION),
        policy_optim=AdamOptimizerFactory(),
        critic=ContinuousCritic(preprocess_net=net, linear_layer=ensemble, flatten_input=False),
        critic_optim=AdamOptimizerFactory(),
        ensemble_size=4,
        gamma=0.9,
    )


def test_an_ensemble_of_critics_guides_as_well():
    level = make(algorithm=lambda **_: type("Built", (), {"build": lambda *_: redq()}))
    train(level, 8)
    state, context = torch.randn(2, 5, 2), torch.zeros(2, 5, 0)
    inputs = level.policy.standardizer(state.view(-1, 2))
    with torch.no_grad():
        values = level.policy.algorithm.critic(inputs, level.policy.best_action(inputs))
    torch.testing.assert_close(level.value(state, context), values.amin(0).view(2, 5) / 0.5)
    assert act(level, True).action.abs().max() <= 1


def test_the_first_proposal_is_the_policys_mean_along_the_means_of_a_member():
    level = make()
    train(level, 8)
    obs = torch.randn(E, 2)
    actions = level.propose(obs, torch.Generator().manual_seed(0))
    assert actions.shape == (E, 3, 4, 2)
    state, dynamics = obs, level.world.dynamics
    with torch.no_grad():
        for t in range(4):
            action = level.policy.best_action(level.policy.inputs(state, None))
            torch.testing.assert_close(actions[:, 0, t], action)
            state = dynamics.predict(state, state[:, :0], action)[0][:, 0, 0]
    assert not torch.equal(actions[:, 0], actions[:, 1])


def test_noise_is_for_exploring_alone():
    level = make(exploration=ExplorationConfig(noise=0.5))
    train(level, 8)
    plain = make()
    train(plain, 8)
    assert torch.equal(act(level, False).action, act(plain, False).action)
    assert not torch.equal(act(level, True).action, act(plain, True).action)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_proposals": 9}, "n_proposals is 9, expected at most as many as the planner's own candidates, 8"),
        ({"n_proposals": -1}, "n_proposals"),
    ],
)
def test_refused_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_a_restored_level_goes_on_alike(tmp_path):
    level, other = make(real_share=0.5), make(real_share=0.5)
    train(level, 7)
    Checkpoints(tmp_path).save({"level": level.state_dict(), "replay": level.replay.state_dict()}, 21)
    state = Checkpoints(tmp_path).load()
    other.load_state_dict(state["level"])
    other.replay.load_state_dict(state["replay"])
    for each in (level, other):
        torch.manual_seed(1)
        train(each, 3, start=7)
    assert torch.equal(act(level, True).action, act(other, True).action)
    inputs = torch.randn(4, 2), torch.zeros(4, 0)
    assert torch.equal(level.value(*inputs), other.value(*inputs))
