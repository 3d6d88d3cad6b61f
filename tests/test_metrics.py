"""Means of metrics between two reports."""

import torch

from layeredrl.metrics import RunningMeans


def test_each_metric_has_the_mean_of_its_own_values():
    means = RunningMeans()
    assert not means
    means.add({"loss": 1.0, "reward": torch.tensor(4.0)})
    means.add({"loss": 3.0})
    assert means
    assert means.take() == {"loss": 2.0, "reward": 4.0}


def test_taking_begins_anew():
    means = RunningMeans()
    means.add({"loss": 1.0})
    means.take()
    assert not means
    assert means.take() == {}
    means.add({"loss": 5.0})
    assert means.take() == {"loss": 5.0}


def test_the_state_resumes_and_is_a_copy():
    means, other = RunningMeans(), RunningMeans()
    means.add({"loss": 1.0, "reward": 7.0})
    state = means.state_dict()
    other.add({"other": 1.0})
    other.load_state_dict(state)
    for one in (means, other):
        one.add({"loss": 2.0})
        assert one.take() == {"loss": 1.5, "reward": 7.0}
    assert state == {"sums": {"loss": 1.0, "reward": 7.0}, "counts": {"loss": 1, "reward": 1}}
