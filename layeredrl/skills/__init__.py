"""Skills: methods of learning them, the interface by which a method plugs in, and the level that carries them out."""

from layeredrl.skills.dads import DADS
from layeredrl.skills.diayn import DIAYN
from layeredrl.skills.level import SkillLevel
from layeredrl.skills.method import AtEnd, SkillInputs, SkillMethod
from layeredrl.skills.model_based import ModelBasedSkills, SkillModelConfig
from layeredrl.skills.splates import SPlaTES

__all__ = [
    "DADS",
    "DIAYN",
    "AtEnd",
    "ModelBasedSkills",
    "SPlaTES",
    "SkillInputs",
    "SkillLevel",
    "SkillMethod",
    "SkillModelConfig",
]
