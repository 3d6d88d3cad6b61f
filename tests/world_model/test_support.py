"""GridSupport against a dict of cells, NeighbourSupport against a plain loop over its anchors."""

from collections import Counter

import numpy as np
import pytest
import torch

from layeredrl.world_model import GridSupport, NeighbourSupport

S = 10


def cells(states, dims, cell):
    """Cells by brute force, in float32 like the states."""
    return [tuple(int(np.floor(np.float32(row[d]) / np.float32(cell))) for d in dims) for row in states.numpy()]


def share_that_differs(support, data, queries, dims, cell):
    """Share of queries for which the grid and a dict of cells differ."""
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


@pytest.mark.parametrize("n_dims", [1, 4, 8])
def test_hash_collisions_of_cells_are_rare(n_dims):
    """Also where only the last dimensions vary, by a little."""
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


@pytest.mark.parametrize("min_visits", [1, 5])
def test_cells_with_min_visits_are_supported(min_visits):
    support = GridSupport([0, 1], 1.0, min_visits)
    support.fit(torch.full((9, 2), 0.5))  # replaced by the next fit
    visits = torch.arange(7)  # cell i is visited i times
    support.fit(visits.repeat_interleave(visits)[:, None].expand(-1, 2) + 0.5)
    queries = visits[:, None].expand(-1, 2) + 0.5
    assert support(queries).tolist() == [float(n < min_visits) for n in range(7)]


def test_before_a_fit_everything_is_supported():
    assert not GridSupport([0, 3], 0.1, min_visits=7)(torch.randn(1000, S) * 100).any()


def test_non_finite_and_huge_numbers_are_unsupported():
    support = GridSupport([0, 1], 0.5, min_visits=1)
    bad = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e38, -1e38])
    queries = torch.stack([bad, torch.full((5,), 0.2)], -1)
    support.fit(torch.full((3, 2), 0.2))
    assert support(queries).tolist() == [1.0] * 5
    assert support(queries.flip(-1)).tolist() == [1.0] * 5
    support.fit(queries)
    assert support(torch.full((3, 2), 0.2)).tolist() == [1.0] * 3


# ------------------------------------------------------------------ NeighbourSupport


def fitted(data, **settings):
    support = NeighbourSupport(range(data.shape[1]), **settings)
    support.fit(data)
    return support


def nearest(x, anchors):
    """Distances (N,) by a plain loop, in double precision."""
    rows = anchors.double().numpy()
    return np.array([min(np.linalg.norm(rows - row, axis=1)) for row in x.double().numpy()])


def ring(n, generator):
    """Points at distances 1 to 2 from the origin."""
    angle = 2 * torch.pi * torch.rand(n, generator=generator)
    radius = 1 + torch.rand(n, generator=generator)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], -1)


@pytest.mark.parametrize("n_dims", [1, 3, 12])
@pytest.mark.parametrize("n_anchors", [1, 40])
def test_the_share_rises_with_the_distance_to_the_nearest_anchor(n_dims, n_anchors):
    generator = torch.Generator().manual_seed(0)
    data, queries = torch.randn(2, 700, n_dims, generator=generator)  # more queries than one chunk
    support = fitted(5 + 3 * data, n_anchors=n_anchors)
    queries = 2 * queries
    scaled = (5 + 3 * queries - support.mean) / support.std
    expected = np.clip(nearest(scaled, support.anchors) / float(support.radius) - 1, 0, 1)
    assert (expected > 0).mean() > 0.05
    np.testing.assert_allclose(support(5 + 3 * queries), expected, atol=2e-3)


@pytest.mark.parametrize("quantile", [0.5, 0.99])
def test_the_radius_holds_its_share_of_states_that_are_no_anchors(quantile):
    generator = torch.Generator().manual_seed(0)
    data, new = torch.rand(2, 5000, 3, generator=generator)
    support = fitted(data, quantile=quantile)
    assert (support(new) == 0).float().mean() == pytest.approx(quantile, abs=0.02)


def test_anchors_are_states_of_the_data_and_lie_apart():
    data = torch.randn(3000, 2, generator=torch.Generator().manual_seed(0))
    support = fitted(data, n_anchors=200)
    anchors = support.mean + support.std * support.anchors
    assert nearest(anchors, data).max() < 1e-5
    between = torch.cdist(support.anchors, support.anchors) + 9 * torch.eye(200)
    others = data[:200] / data.std(0)
    assert between.min() > 10 * (torch.cdist(others, others) + 9 * torch.eye(200)).min()


def test_a_hole_in_the_data_and_what_is_around_it_are_unsupported():
    generator = torch.Generator().manual_seed(0)
    support = fitted(ring(5000, generator))
    assert support(ring(1000, generator)).mean() < 0.01
    assert (support(0.5 * torch.rand(100, 2, generator=generator) - 0.25) == 1).all()
    assert (support(3 * ring(100, generator)) == 1).all()


def test_a_sheet_in_ten_dimensions():
    """Data for which no grid would visit a cell twice."""
    generator = torch.Generator().manual_seed(0)
    lift = torch.randn(2, 10, generator=generator)

    def sheet(n):
        return (ring(n, generator) @ lift).sin() + 0.01 * torch.randn(n, 10, generator=generator)

    support = fitted(sheet(10_000))
    on = sheet(1000)
    away = torch.nn.functional.normalize(torch.randn(1000, 10, generator=generator), dim=-1)
    assert (support(on) == 0).float().mean() > 0.97
    assert (support(on + 2 * away) > 0).float().mean() > 0.97


def test_units_of_the_state_do_not_matter():
    generator = torch.Generator().manual_seed(0)
    data, queries = ring(3000, generator), 4 * torch.rand(500, 2, generator=generator) - 2
    scale, shift = torch.tensor([1000.0, 0.01]), torch.tensor([-500.0, 0.3])
    plain, scaled = fitted(data)(queries), fitted(scale * data + shift)(scale * queries + shift)
    assert 0.1 < plain.mean() < 0.9
    torch.testing.assert_close(plain, scaled, atol=0.02, rtol=0)


def test_a_dimension_that_never_varies_counts_in_its_own_unit():
    data = torch.rand(3000, 2, generator=torch.Generator().manual_seed(0))
    data = torch.cat([data, torch.full((3000, 1), 0.1)], 1)  # its standard deviation is not zero, but rounding
    support = fitted(data)
    inside = data[:50] + torch.tensor([0.0, 0.0, 1e-4])
    assert (support(inside) < 0.5).all()
    assert (support(inside + torch.tensor([0.0, 0.0, 1.0])) == 1).all()


def test_only_its_dimensions_count():
    support = NeighbourSupport([2, 0])
    data = torch.rand(500, 4, generator=torch.Generator().manual_seed(0))
    support.fit(data)
    assert (support(data + torch.tensor([0.0, 9.0, 0.0, 9.0])) < 1).all()
    assert (support(data + torch.tensor([0.0, 0.0, 9.0, 0.0])) == 1).all()


def test_identical_states_support_only_themselves():
    support = fitted(torch.full((100, 2), 0.3))
    assert (support(torch.full((5, 2), 0.3)) == 0).all()
    assert (support(torch.full((5, 2), 0.5)) == 1).all()


@pytest.mark.parametrize("data", [None, torch.zeros(0, 2), torch.zeros(1, 2), torch.full((9, 2), float("nan"))])
def test_without_data_every_query_is_supported(data):
    support = NeighbourSupport([0, 1])
    if data is not None:
        support.fit(torch.rand(100, 2))
        support.fit(data)
    queries = torch.tensor([[0.0, 0.0], [1e6, 0.0], [float("nan"), 0.0], [0.0, float("inf")]])
    assert support(queries).tolist() == [0.0] * 4


def test_each_fit_of_neighbours_replaces_the_last():
    data = torch.rand(500, 2, generator=torch.Generator().manual_seed(0))
    support = fitted(data)
    support.fit(data + 9)
    assert (support(data) == 1).all()
    again = fitted(data + 9)
    for name, value in again.state_dict().items():
        assert torch.equal(support.state_dict()[name], value)


def test_nothing_is_drawn_from_the_global_generator():
    data = torch.rand(5000, 2, generator=torch.Generator().manual_seed(0))
    before = torch.get_rng_state()
    first = fitted(data)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(7)
    assert torch.equal(first.anchors, fitted(data).anchors)


def test_non_finite_states_are_unsupported():
    data = torch.rand(500, 2, generator=torch.Generator().manual_seed(0))
    bad = torch.tensor([float("nan"), float("inf"), -float("inf"), 3e38, -3e38])
    queries = torch.stack([bad, torch.full((5,), 0.5)], -1)
    support = fitted(torch.cat([data, queries[:3]]))  # the data may hold some of them
    assert torch.equal(support.radius, fitted(data).radius)
    assert support(queries).tolist() == support(queries.flip(-1)).tolist() == [1.0] * 5
    assert (support(data) < 1).all()


@pytest.mark.parametrize("make", [NeighbourSupport, lambda dims: GridSupport(dims, 1.0)])
def test_dimensions_that_the_state_does_not_have_are_refused(make):
    support = make([0, 3])
    support.check(4)
    with pytest.raises(ValueError, match=r"dims is \[0, 3\], expected less than the state's width 3"):
        support.check(3)


@pytest.mark.parametrize(
    "make", [lambda: GridSupport([0, 1], 0.3, min_visits=2), lambda: NeighbourSupport([0, 1], 100)]
)
def test_fitted_supports_are_saved(make, tmp_path):
    first, other = make(), make()
    data, queries = torch.randn(2, 500, 2, generator=torch.Generator().manual_seed(0))
    first.fit(data)
    torch.save(first.state_dict(), tmp_path / "state")
    other.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert 0 < first(2 * queries).mean() < 1
    assert torch.equal(first(2 * queries), other(2 * queries))


@pytest.mark.parametrize("make", [lambda: GridSupport([0, 1], 9.0, min_visits=1), lambda: NeighbourSupport([0, 1])])
@pytest.mark.parametrize(("lead", "dtype"), [((), torch.float32), ((0,), torch.float32), ((2, 3, 2, 5), torch.float64)])
def test_leading_dimensions_and_dtype_stay(make, lead, dtype):
    support, generator = make(), torch.Generator().manual_seed(0)
    support.fit(torch.rand(500, 2, generator=generator))
    states = torch.rand(*lead, 2, dtype=dtype, generator=generator)
    for shift, supported in ((0, True), (100, False)):
        result = support(states + shift)
        assert (result.shape, result.dtype) == (lead, dtype)
        assert ((result < 1) == supported).all()


@pytest.mark.parametrize("n", [2, 3, 50])
def test_few_states_are_enough(n):
    data = torch.randn(n, 2, generator=torch.Generator().manual_seed(0))
    support = fitted(data)
    assert support.anchors.shape == (1024, 2)
    assert (support(data) < 1).float().mean() >= 0.5
    assert (support(data + 100) == 1).all()


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (GridSupport, {"dims": []}, r"dims is \[\], expected one to 8"),
        (GridSupport, {"dims": range(9)}, r"dims is \[0, .*expected one to 8"),
        (GridSupport, {"dims": [-1]}, "dims is -1, expected at least 0"),
        (GridSupport, {"cell": 0.0}, r"cell is 0\.0"),
        (GridSupport, {"cell": float("nan")}, "cell is nan"),
        (GridSupport, {"min_visits": 0}, "min_visits is 0, expected at least 1"),
        (NeighbourSupport, {"dims": []}, r"dims is \[\], expected at least one"),
        (NeighbourSupport, {"dims": [1, 1]}, r"dims is \[1, 1\], expected .* each once"),
        (NeighbourSupport, {"dims": [-1]}, "dims is -1, expected at least 0"),
        (NeighbourSupport, {"n_anchors": 0}, "n_anchors is 0, expected at least 1"),
        (NeighbourSupport, {"quantile": 0.0}, r"quantile is 0\.0, expected a number in \(0, 1\]"),
        (NeighbourSupport, {"quantile": 1.5}, r"quantile is 1\.5"),
    ],
)
def test_settings_out_of_range_are_refused(kind, settings, message):
    default = {"dims": [0], "cell": 1.0} if kind is GridSupport else {"dims": [0]}
    with pytest.raises(ValueError, match=message):
        kind(**default | settings)
