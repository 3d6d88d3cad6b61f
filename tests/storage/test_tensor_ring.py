"""A ring of tensors, against a list of all rows that were added."""

import pytest
import torch

from layeredrl.storage import Checkpoints
from layeredrl.storage.tensor_ring import TensorRing

CPU = torch.device("cpu")


def rows(start, n):
    numbers = torch.arange(start, start + n)
    return {"x": numbers.float().unsqueeze(-1), "y": -numbers}


def numbers_of(ring):
    kept = ring.rows(ring.n_added - len(ring), ring.n_added)
    assert torch.equal(kept["x"].flatten().long(), -kept["y"])
    return kept["x"].flatten().long().tolist()


def restored(checkpoints, **options):
    """A ring with the state of the newest checkpoint."""
    ring = TensorRing(10, CPU)
    ring.add(rows(100, 5))
    ring.load_state_dict(checkpoints.load(**options))
    return ring


@pytest.mark.parametrize("sizes", [[3, 4], [0, 7, 5, 0, 9], [10, 10], [23], [4, 37, 1], [1] * 25])
def test_the_newest_rows_are_kept(sizes):
    ring, added = TensorRing(10, CPU), []
    for n in sizes:
        ring.add(rows(len(added), n))
        added += range(len(added), len(added) + n)
        assert (len(ring), ring.n_added) == (min(len(added), 10), len(added))
        assert numbers_of(ring) == added[-10:]


def test_rows_are_drawn_uniformly_from_the_newest():
    ring = TensorRing(10, CPU)
    ring.add(rows(0, 17))
    drawn = ring.sample(40_000, 4, torch.Generator().manual_seed(0))["x"].flatten().long()
    counts = torch.bincount(drawn, minlength=17)
    assert counts[:13].sum() == 0
    torch.testing.assert_close(counts[13:] / 40_000, torch.full((4,), 0.25), rtol=0, atol=0.01)
    for newest in (0, 11):
        with pytest.raises(ValueError, match=f"newest is {newest}, expected a number of rows from 1 to 10"):
            ring.sample(1, newest, torch.Generator())


@pytest.mark.parametrize("sizes", [[0], [7], [23], [4, 3], [7, 5, 0, 2], [23, 23]])
def test_a_restored_ring_goes_on_alike(sizes, tmp_path):
    ring, checkpoints = TensorRing(10, CPU), Checkpoints(tmp_path)
    for i, n in enumerate(sizes):
        ring.add(rows(ring.n_added, n))
        state = ring.state_dict()
        assert len(state["rows"].rows["x"]) == min(n, 10)  # only what is new
        checkpoints.save(state, i)
    other = restored(checkpoints)
    for each in (ring, other):
        each.add(rows(each.n_added, 6))
    assert numbers_of(ring) == numbers_of(other)
    draws = [each.sample(50, 6, torch.Generator().manual_seed(1))["y"] for each in (ring, other)]
    assert torch.equal(*draws)
    checkpoints.save(ring.state_dict(), len(sizes))
    assert numbers_of(restored(checkpoints)) == numbers_of(ring)


@pytest.mark.parametrize("n", [4, 7, 23])
def test_a_state_may_have_the_newest_rows_alone(n, tmp_path):
    ring, checkpoints = TensorRing(10, CPU), Checkpoints(tmp_path)
    ring.add(rows(0, n))
    checkpoints.save(ring.state_dict(3), 1)
    other = restored(checkpoints)
    assert numbers_of(other) == list(range(n - 3, n))
    with pytest.raises(ValueError, match="newest is 4, expected a number of rows from 1 to 3"):
        other.sample(1, 4, torch.Generator())
    for n_new in (5, 9):
        for each in (ring, other):
            each.add(rows(each.n_added, n_new))
        newest = min(10, 3 + n_new)
        draws = [each.sample(50, newest, torch.Generator().manual_seed(1))["y"] for each in (ring, other)]
        assert torch.equal(*draws)
    assert (len(other), numbers_of(other)) == (10, numbers_of(ring))


def test_a_state_without_its_rows_is_that_of_an_empty_ring(tmp_path):
    ring, checkpoints = TensorRing(10, CPU), Checkpoints(tmp_path)
    ring.add(rows(0, 7))
    checkpoints.save(ring.state_dict(), 1)
    other = restored(checkpoints, increments=False)
    assert (len(other), other.n_added) == (0, 7)


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="size is 0, expected at least 1"):
        TensorRing(0, CPU)
    ring = TensorRing(4, CPU)
    ring.add(rows(0, 2))
    with pytest.raises(ValueError, match="rows have x, expected x, y"):
        ring.add({"x": torch.zeros(1, 1)})
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(ring.state_dict(), 1)
    with pytest.raises(ValueError, match="the state has 2 rows, expected at most 1"):
        TensorRing(1, CPU).load_state_dict(checkpoints.load())
