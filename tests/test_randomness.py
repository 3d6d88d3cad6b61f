"""The global generators: their states are all that they draw from."""

import random

import numpy as np
import pytest
import torch

from layeredrl.randomness import derive_seed, fork_globals, globals_state, restore_globals, seed_from, seed_globals
from layeredrl.storage import Checkpoints


def draw():
    """Numbers of all kinds from all global generators."""
    return [
        random.random(),
        random.gauss(0, 1),
        *np.random.rand(3).tolist(),  # noqa: NPY002
        float(np.random.randn()),  # noqa: NPY002
        *torch.rand(3).tolist(),
        *torch.randn(3).tolist(),
        int(torch.randperm(100)[0]),
    ]


def test_a_seed_from_a_generator_follows_from_its_state_and_leaves_it_alone():
    generator = torch.Generator().manual_seed(5)
    seeds = []
    for _ in range(3):
        state = generator.get_state()
        seeds.append(seed_from(generator))
        assert torch.equal(generator.get_state(), state)
        assert seed_from(torch.Generator().set_state(state)) == seeds[-1]
        torch.Generator().manual_seed(seeds[-1])
        torch.rand(1, generator=generator)
    assert len(set(seeds)) == 3


@pytest.mark.parametrize("n_before", [0, 1, 2])  # normal numbers come in pairs, of which one is kept
def test_states_can_be_restored(n_before, tmp_path):
    seed_globals(n_before)
    for _ in range(n_before):
        draw()
    state = globals_state()
    expected = [draw(), draw()]
    restore_globals(state)
    assert [draw(), draw()] == expected
    Checkpoints(tmp_path).save({"globals": state}, 0)
    seed_globals(99)
    restore_globals(Checkpoints(tmp_path).load()["globals"])
    assert [draw(), draw()] == expected


def test_a_state_does_not_follow_its_generators():
    seed_globals(0)
    state = globals_state()
    expected = draw()
    draw()
    restore_globals(state)
    assert draw() == expected


def test_a_fork_leaves_no_trace():
    seed_globals(3)
    expected = draw()
    seed_globals(3)
    with fork_globals():
        draw()
    assert draw() == expected


def test_derived_seeds_differ_by_seed_and_purpose():
    seeds = [derive_seed(seed, purpose) for seed in range(20) for purpose in ("fit", "replay", "evaluation")]
    assert len(set(seeds)) == len(seeds)
    assert seeds == [derive_seed(seed, purpose) for seed in range(20) for purpose in ("fit", "replay", "evaluation")]


def numpy_part(**changes):
    def change(state):
        names = ("kind", "keys", "position", "has_gauss", "gauss")
        state["numpy"] = list((dict(zip(names, state["numpy"], strict=True)) | changes).values())

    return change


def python_part(change):
    return lambda state: change(state["python"][1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (numpy_part(position=625), r"numpy's generator has position 625, expected an integer in \[0, 624\]"),
        (numpy_part(position=-1), "numpy's generator has position -1"),
        (numpy_part(position=3.0), r"numpy's generator has position 3\.0"),
        (numpy_part(has_gauss=2), "numpy's generator has has_gauss 2 and gauss"),
        (numpy_part(gauss=None), "numpy's generator has has_gauss . and gauss None"),
        (numpy_part(keys=torch.zeros(623, dtype=torch.int64)), "numpy's generator has other words than 624"),
        (numpy_part(keys=torch.full((624,), 2**32)), "numpy's generator has other words than 624"),
        (numpy_part(keys=torch.zeros(624)), "numpy's generator has other words than 624"),
        (python_part(lambda numbers: numbers.pop()), "Python's generator has other words than 624"),
        (python_part(lambda numbers: numbers.append(1)), "Python's generator has other words than 624"),
        (python_part(lambda numbers: numbers.__setitem__(0, 2**32)), "Python's generator has other words than 624"),
        (python_part(lambda numbers: numbers.__setitem__(0, -1)), "Python's generator has other words than 624"),
        (python_part(lambda numbers: numbers.__setitem__(0, "1")), "Python's generator is not of integers"),
        (python_part(lambda numbers: numbers.__setitem__(-1, 625)), "Python's generator has position 625"),
    ],
)
def test_states_that_would_be_read_out_of_bounds_are_refused(change, message):
    seed_globals(0)
    state = globals_state()
    expected = draw()
    seed_globals(0)
    change(state)
    with pytest.raises(ValueError, match=message):
        restore_globals(state)
    assert draw() == expected
