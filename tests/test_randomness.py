"""Seeds, and states of the global generators."""

import random

import numpy as np
import pytest
import torch

from layeredrl.randomness import (
    derive_seed,
    fork_globals,
    generator_state,
    globals_state,
    restore_generator,
    restore_globals,
    seed_from,
    seed_globals,
)
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


def test_a_seed_from_a_generator_depends_on_its_unchanged_state():
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
    expected = [draw(), draw()]  # does not change the state
    restore_globals(state)
    assert [draw(), draw()] == expected
    Checkpoints(tmp_path).save({"globals": state}, 0)
    seed_globals(99)
    restore_globals(Checkpoints(tmp_path).load()["globals"])
    with fork_globals():
        draw()
    assert [draw(), draw()] == expected


def test_a_generator_is_restored_on_the_type_of_device_where_it_was():
    generator = torch.Generator().manual_seed(3)
    torch.rand(5, generator=generator)
    state = generator_state(generator)
    expected = torch.rand(4, generator=generator)
    restore_generator(generator, {**state, "device": "cuda"})
    assert not torch.equal(torch.rand(4, generator=generator), expected)
    restore_generator(generator, state)
    assert torch.equal(torch.rand(4, generator=generator), expected)


def test_derived_seeds_differ_by_seed_and_purpose():
    seeds = [derive_seed(seed, purpose) for seed in range(20) for purpose in ("fit", "replay", "evaluation")]
    assert len(set(seeds)) == len(seeds)
    assert seeds == [derive_seed(seed, purpose) for seed in range(20) for purpose in ("fit", "replay", "evaluation")]


def test_states_that_would_be_read_out_of_bounds_are_refused():
    seed_globals(0)
    whole = globals_state()
    expected = draw()
    seed_globals(0)
    for generator, change, message in [
        ("numpy", {2: 625}, r"has position 625, expected an integer in \[0, 624\]"),
        ("numpy", {2: -1}, "has position -1"),
        ("numpy", {2: 3.0}, r"has position 3\.0"),
        ("numpy", {3: 2}, "has has_gauss 2 and gauss"),
        ("numpy", {4: None}, "has has_gauss . and gauss None"),
        ("numpy", {1: torch.zeros(623, dtype=torch.int64)}, "has other words than 624"),
        ("numpy", {1: torch.full((624,), 2**32)}, "has other words than 624"),
        ("numpy", {1: torch.zeros(624)}, "has other words than 624"),
        ("Python", lambda numbers: numbers[1:], "has other words than 624"),
        ("Python", lambda numbers: [*numbers, 1], "has other words than 624"),
        ("Python", lambda numbers: [2**32, *numbers[1:]], "has other words than 624"),
        ("Python", lambda numbers: [-1, *numbers[1:]], "has other words than 624"),
        ("Python", lambda numbers: ["1", *numbers[1:]], "is not of integers"),
        ("Python", lambda numbers: [*numbers[:-1], 625], "has position 625"),
    ]:
        state = {**whole, generator.lower(): list(whole[generator.lower()])}
        changes = change if generator == "numpy" else {1: change(state["python"][1])}
        for index, value in changes.items():
            state[generator.lower()][index] = value
        with pytest.raises(ValueError, match=f"{generator}'s generator {message}"):
            restore_globals(state)
    assert draw() == expected


@pytest.mark.parametrize("name", ["get_rng_state_all", "get_rng_state", "set_rng_state_all", "_lazy_init"])
def test_a_process_that_does_not_use_cuda_does_not_initialise_it(name, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError(f"{name} initialises CUDA")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, name, refuse)
    seed_globals(0)
    with fork_globals():
        torch.rand(2)
    state = globals_state()
    assert "cuda" not in state
    restore_globals(state | {"cuda": [torch.zeros(16, dtype=torch.uint8)] * 2})  # of a run on two GPUs


def test_generators_of_gpus_in_use_are_saved_and_restored(monkeypatch):
    own, kept = [torch.arange(16, dtype=torch.uint8)], []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: own)
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", kept.extend)
    state = globals_state()
    assert state["cuda"] is own
    restore_globals(state)
    torch.testing.assert_close(kept, own)
