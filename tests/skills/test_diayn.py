"""DIAYN: its reward in plain numbers, and its discriminator."""

import math

import numpy as np
import pytest
import torch

from layeredrl.skills import diayn
from layeredrl.skills.diayn import DIAYN, DiscriminatorConfig
from layeredrl.storage import Checkpoints
from tests.recording import leaves
from tests.skills.walk import CHOICES, ENCODER, TASK, Walk, as_batch, no_log_prob


def make(seed=0, n_skills=3):
    torch.manual_seed(seed)
    config = DiscriminatorConfig((16,), 1e-2, batch_size=64, updates_per_transition=0.5, report_every=40)
    return DIAYN(TASK, ENCODER, n_skills, 5, config=config)


def toy(n_steps=40):
    """Three skills with three directions; episodes begin close together."""
    return Walk(4, skills=CHOICES, done=0.2, spread=0.05).step(n_steps)


@torch.no_grad()
def test_the_reward_is_the_discriminator_s_log_probability_minus_that_of_the_prior():
    method, rows = make(n_skills=4), toy().rows[0][:20]
    with torch.no_grad():
        for parameter in method.discriminator.parameters():
            parameter.mul_(5)
    found = method.reward(as_batch(rows))
    for i, row in enumerate(rows):
        scores = method.discriminator(torch.tensor(row.obs_next[None, :2]))[0].double().exp().tolist()
        share = scores[int(row.skill[0])] / sum(scores)
        assert float(found[i]) == pytest.approx(math.log(share) - math.log(1 / 4), abs=1e-4)
    assert found.max() <= math.log(4)


def test_the_discriminator_learns_to_recognise_skills():
    method, walk = make(), toy()
    batch = as_batch([rows[-1] for rows in walk.whole_skills() if np.abs(rows[0].start).max() < 0.5])
    with torch.no_grad():
        assert abs(float(method.reward(batch).mean())) < 0.2
    n_transitions = walk.replay.n_added
    metrics = method.learn(walk.replay, n_transitions, no_log_prob)
    assert (
        method.n_updates == metrics["skill/discriminator_updates"] == n_transitions // 2
    )  # whatever the number of calls
    assert 0 < metrics["skill/discriminator_loss"] < math.log(3) + 0.1
    assert 1 / 3 < metrics["skill/accuracy"] <= 1
    assert method.learn(walk.replay, n_transitions, no_log_prob) == {}
    with torch.no_grad():
        found = method.reward(batch)
        recognised = method.discriminator(batch.obs_next[:, :2]).argmax(1)
    assert len(found) >= 10
    assert (recognised == batch.command.action[:, 0]).float().mean() > 0.8
    assert found.mean() > 0.6 * math.log(3)


def test_the_discriminator_s_loss_is_the_cross_entropy_of_next_states(monkeypatch):
    method, walk, losses = make(), toy(), []
    monkeypatch.setattr(diayn, "descend", lambda loss, optimizer: losses.append((loss.item(), optimizer)))
    states = [generator.get_state() for generator in walk.replay.buffer.generators]
    method.n_updates = walk.replay.n_added // 2 - 1  # one update is due
    method.learn(walk.replay, 1, no_log_prob)
    for generator, state in zip(walk.replay.buffer.generators, states, strict=True):
        generator.set_state(state)
    rows, _ = walk.replay.sample(64)
    with torch.no_grad():
        shares = method.discriminator(torch.as_tensor(rows.obs_next[:, :2])).double().softmax(1).numpy()
    expected = -np.mean([np.log(share[skill]) for share, skill in zip(shares, rows.info.command.action, strict=True)])
    assert losses == [(pytest.approx(expected, abs=1e-5), method.optimizer)]


def test_learning_resumes_bit_for_bit(tmp_path):
    method, walk = make(), toy()
    method.learn(walk.replay, 5, no_log_prob)
    Checkpoints(tmp_path).save({"method": method.state_dict(), "replay": walk.replay.state_dict()}, 5)
    other, again, state = make(seed=7), toy(), Checkpoints(tmp_path).load()
    other.load_state_dict(state["method"])
    again.replay.load_state_dict(state["replay"])
    for one, replay in ((method, walk.replay), (other, again.replay)):
        one.n_updates -= 5
        one.learn(replay, 9, no_log_prob)
    assert leaves(method.state_dict()) == leaves(other.state_dict())


def test_a_state_of_another_number_of_skills_is_refused():
    with pytest.raises(RuntimeError, match="size mismatch"):
        make().load_state_dict(make(n_skills=4).state_dict())
