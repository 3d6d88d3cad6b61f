"""GridSupport against a dict of cells."""

from collections import Counter

import numpy as np
import pytest
import torch

from layeredrl.support import GridSupport

S = 10


def cells(states, dims, cell):
    """Cells by brute force; in numbers that are as exact as those of the states."""
    return [tuple(int(np.floor(np.float32(row[d]) / np.float32(cell))) for d in dims) for row in states.numpy()]


def share_that_differs(support, data, queries, dims, cell):
    """How often the grid and a dict of cells do not say the same."""
    support.fit(data)
    visits = Counter(cells(data, dims, cell))
    expected = [float(visits[c] < support.min_visits) for c in cells(queries, dims, cell)]
    assert 0.05 < np.mean(expected) < 0.95
    return np.mean(support(queries).numpy() != expected)


@pytest.mark.parametrize(("dims", "cell"), [([0], 0.01), ([2, 0], 0.1), ([1, 3, 5], 0.3), ([7], 0.03)])
@pytest.mark.parametrize("min_visits", [1, 3])
def test_visits_are_those_of_a_dict_of_cells(dims, cell, min_visits):
    generator = torch.Generator().manual_seed(0)
    data, queries = torch.randn(2, 2000, S, generator=generator)  # negative as often as positive
    assert share_that_differs(GridSupport(dims, cell, min_visits), data, 1.5 * queries, dims, cell) < 0.01


@pytest.mark.parametrize("n_dims", range(1, 9))
def test_cells_that_share_an_entry_are_rare(n_dims):
    """Also where only the last dimensions vary, and little."""
    generator = torch.Generator().manual_seed(0)
    data, queries = torch.full((2, 3000, S), 0.5)
    varied = slice(max(n_dims - 3, 0), n_dims)
    data[:, varied] += torch.randint(-9, 9, (3000, S), generator=generator)[:, varied]
    data = data[data[:, n_dims - 1] % 2 == 0.5]
    queries[:, varied] += torch.randint(-9, 9, (3000, S), generator=generator)[:, varied]
    assert share_that_differs(GridSupport(range(n_dims), 1.0, min_visits=1), data, queries, range(n_dims), 1.0) < 0.01


def test_a_border_belongs_to_the_cell_above():
    support = GridSupport([0], 0.5, min_visits=1)
    support.fit(torch.tensor([[0.0], [0.5], [-1.0]]))  # cells [0, 0.5), [0.5, 1), [-1, -0.5)
    below = torch.nextafter(torch.tensor([0.0, 1.0, -1.0, -0.5]), torch.tensor(-9.0))
    assert support(below[:, None]).tolist() == [1.0, 0.0, 1.0, 0.0]
    assert support(torch.tensor([[0.0], [0.5], [1.0], [-1.0], [-0.5]])).tolist() == [0.0, 0.0, 1.0, 0.0, 1.0]


@pytest.mark.parametrize("min_visits", [1, 2, 5])
def test_as_many_visits_as_it_takes(min_visits):
    support = GridSupport([0, 1], 1.0, min_visits)
    visits = torch.arange(7)  # cell i is visited i times
    support.fit(visits.repeat_interleave(visits)[:, None].expand(-1, 2) + 0.5)
    queries = visits[:, None].expand(-1, 2) + 0.5
    assert support(queries).tolist() == [float(n < min_visits) for n in range(7)]


def test_each_fit_begins_anew():
    support = GridSupport([0], 1.0, min_visits=2)
    support.fit(torch.tensor([[0.5], [0.5]]))
    support.fit(torch.tensor([[1.5], [1.5], [0.5]]))
    assert support(torch.tensor([[0.5], [1.5]])).tolist() == [1.0, 0.0]


def test_until_it_is_fitted_everything_is_supported():
    assert not GridSupport([0, 3], 0.1, min_visits=7)(torch.randn(1000, S) * 100).any()


def test_numbers_that_are_none_and_those_beyond_the_integers():
    support = GridSupport([0, 1], 0.5, min_visits=1)
    bad = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e38, -1e38])
    queries = torch.stack([bad, torch.full((5,), 0.2)], -1)
    support.fit(torch.full((3, 2), 0.2))
    assert support(queries).tolist() == [1.0] * 5
    assert support(queries.flip(-1)).tolist() == [1.0] * 5
    support.fit(queries)
    assert support(torch.full((3, 2), 0.2)).tolist() == [1.0] * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lead", [(), (4,), (2, 3, 2, 5)])
def test_leading_dimensions_stay(lead, dtype):
    support = GridSupport([1], 1.0, min_visits=1)
    support.fit(torch.tensor([[9.0, 0.5], [9.0, 2.5]]))
    states = torch.randint(0, 4, (*lead, 2), generator=torch.Generator().manual_seed(0)) + torch.tensor(0.5)
    result = support(states.to(dtype))
    assert result.shape == lead
    assert result.dtype == dtype
    assert torch.equal(result, (states[..., 1].long() % 2).to(dtype))
    support.fit(states.to(dtype).reshape(-1, 2))
    assert not support(states).any()


def test_what_was_visited_is_saved(tmp_path):
    first, other = (GridSupport([0, 1], 0.3, min_visits=2) for _ in range(2))
    data, queries = torch.randn(2, 500, 2, generator=torch.Generator().manual_seed(0))
    first.fit(data)
    torch.save(first.state_dict(), tmp_path / "state")
    other.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert 0 < first(queries).mean() < 1
    assert torch.equal(first(queries), other(queries))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dims": []}, r"dims is \[\], expected one to 8"),
        ({"dims": range(9)}, r"dims is \[0, .*expected one to 8"),
        ({"dims": [-1]}, "dims is -1, expected at least 0"),
        ({"cell": 0.0}, r"cell is 0\.0"),
        ({"cell": float("nan")}, "cell is nan"),
        ({"min_visits": 0}, "min_visits is 0, expected at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        GridSupport(**{"dims": [0], "cell": 1.0} | settings)
