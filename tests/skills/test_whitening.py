"""Whitening: unit covariance, against running statistics in plain numpy."""

import numpy as np
import pytest
import torch

from layeredrl.skills.whitening import Whitening

MIX = torch.tensor([[2.0, 0.0, 0.0], [-0.3, 0.05, 0.0], [0.4, 0.02, 0.6]])


def deltas(n, seed):
    """Displacements with a mean, which does not count."""
    return torch.randn((n, 3), generator=torch.Generator().manual_seed(seed)) @ MIX.mT + torch.tensor([1.0, 0.0, -2.0])


def test_it_is_the_identity_until_there_are_two_displacements():
    whitening, x = Whitening(3), deltas(5, 0)
    assert torch.equal(whitening(x), x)
    whitening.update(deltas(1, 0))
    assert torch.equal(whitening.matrix, torch.eye(3))
    assert torch.equal(whitening.inverse, torch.eye(3))
    whitening.update(deltas(40, 0))
    expected = np.cov(deltas(40, 0).numpy().T)  # the first batch counts in full
    np.testing.assert_allclose(whitening.covariance, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("momentum", [0.02, 0.3])
def test_after_many_updates_the_covariance_is_one(momentum):
    whitening, covariance = Whitening(3, momentum), None
    for seed in range(80):
        x = deltas(64, seed)
        whitening.update(x)
        new = np.cov(x.numpy().astype(np.float64).T)
        covariance = new if covariance is None else (1 - momentum) * covariance + momentum * new
    np.testing.assert_allclose(whitening.covariance, covariance, rtol=1e-3, atol=1e-4)
    matrix = whitening.matrix.double().numpy()
    np.testing.assert_allclose(matrix @ covariance @ matrix.T, np.eye(3), atol=1e-2)
    np.testing.assert_allclose(np.cov(whitening(deltas(20_000, 999)).numpy().T), np.eye(3), atol=6 * momentum**0.5 / 8)


def test_the_map_has_an_inverse_and_does_not_depend_on_units():
    whitening, other, units = Whitening(3), Whitening(3), torch.tensor([1.0, 1e-4, 1e3])
    whitening.update(deltas(100, 0))
    other.update(deltas(100, 0) * units)
    torch.testing.assert_close(other.matrix * units, whitening.matrix, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(whitening.matrix @ whitening.inverse, torch.eye(3), rtol=0, atol=1e-4)
    x = torch.randn(2, 4, 3)
    expected = torch.stack([whitening.matrix @ row for row in x.view(-1, 3)]).view(2, 4, 3)
    torch.testing.assert_close(whitening(x), expected)


@pytest.mark.parametrize("still", [(2,), (0, 1, 2)])
def test_dimensions_that_do_not_vary_leave_it_finite(still):
    whitening, x = Whitening(3), deltas(50, 0)
    x[:, list(still)] = 0.7
    for _ in range(3):
        whitening.update(x)
    assert whitening.dropped.tolist() == [i in still for i in range(3)]
    assert whitening.n_directions == 3 - len(still)
    assert (whitening(torch.full((3,), 5.0))[list(still)] == 0).all()
    projection = torch.diag((~whitening.dropped).float())
    torch.testing.assert_close(whitening.matrix @ whitening.inverse, projection, rtol=0, atol=1e-2)
    moving = [i for i in range(3) if i not in still]
    torch.testing.assert_close(torch.cov(whitening(x).mT)[moving][:, moving], torch.eye(len(moving)), rtol=0, atol=1e-2)


def test_redundant_dimensions_leave_it_finite():
    whitening, x = Whitening(2), torch.randn((200, 1), generator=torch.Generator().manual_seed(0)).expand(200, 2)
    whitening.update(x)
    assert whitening.matrix.isfinite().all()
    assert whitening.n_directions == 1
    assert whitening(x).var() == pytest.approx(0.5, rel=1e-2)  # one direction of variance one, along the diagonal
    off = torch.tensor([[1.0, -1.0]])  # a direction in which nothing has changed
    torch.testing.assert_close(whitening(off), torch.zeros(1, 2), rtol=0, atol=1e-5)


def test_fewer_displacements_than_dimensions_leave_the_rest_out():
    whitening = Whitening(6)
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    whitening.update(x)
    assert whitening.n_directions == 3
    assert whitening(x).abs().max() < 3
    assert whitening(torch.randn(50, 6, generator=torch.Generator().manual_seed(1))).abs().max() < 20


def test_coordinates_stay_until_a_decomposition():
    whitening = Whitening(3)
    whitening.update(deltas(50, 0), decompose=False)
    assert torch.equal(whitening.matrix, torch.eye(3))
    whitening.update(deltas(50, 0))
    assert not torch.equal(whitening.matrix, torch.eye(3))


def test_its_state_resumes():
    whitening, other = Whitening(3), Whitening(3)
    whitening.update(deltas(20, 0))
    other.update(7 * deltas(20, 5))
    other.load_state_dict(whitening.state_dict())
    for one in (whitening, other):
        one.update(deltas(20, 1))
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in whitening.state_dict().items())
    fresh = Whitening(3)
    fresh.update(deltas(20, 1))
    assert not torch.equal(fresh.matrix, other.matrix)  # the first batch still counts
