"""Presets of recipes."""

from dataclasses import dataclass
from typing import ClassVar

import pytest

from agents.dads import DADSAgent
from agents.diayn import DIAYNAgent
from agents.pets import PETS
from agents.random import Random
from agents.recipe import Recipe
from agents.sac import SAC
from agents.splates import SPlaTESAgent
from agents.splates_goals import SPlaTESOverGoalsAgent


@dataclass(frozen=True)
class Base(Recipe):
    width: int = 1
    depth: int = 2

    presets: ClassVar = {"wide": {"width": 9}, "debug": {"width": 3, "depth": 1}}


@dataclass(frozen=True)
class Deeper(Base):
    """Inherits the presets and changes a default."""

    depth: int = 7
    extra: bool = True


def test_a_preset_overrides_defaults():
    assert Base.preset("wide") == Base(width=9, depth=2)
    assert Base.preset("wide", depth=5) == Base(width=9, depth=5)
    assert Base.preset("debug", width=4) == Base(width=4, depth=1)  # an override wins over the preset


def test_a_subclass_keeps_its_own_defaults_in_inherited_presets():
    assert Deeper.preset("wide") == Deeper(width=9, depth=7, extra=True)
    assert Deeper.preset("debug") == Deeper(width=3, depth=1, extra=True)
    assert Base.preset("wide").depth == 2


def test_an_unknown_preset_is_named():
    for kind in (Base, Deeper):
        with pytest.raises(ValueError, match=r"^preset is 'tall', expected one of wide, debug$"):
            kind.preset("tall")


def test_a_preset_of_other_fields_is_an_error():
    class Wrong(Base):
        presets: ClassVar = {"odd": {"height": 1}}

    with pytest.raises(TypeError, match="height"):
        Wrong.preset("odd")


@pytest.mark.parametrize("recipe", [PETS, SAC, SPlaTESAgent, DADSAgent, DIAYNAgent, SPlaTESOverGoalsAgent, Random])
def test_all_presets_can_be_made(recipe):
    for name in recipe.presets:
        assert isinstance(recipe.preset(name), recipe)
    assert recipe is Random or "debug" in recipe.presets
