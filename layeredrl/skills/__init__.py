"""Methods of learning skills, and the interface by which they plug in."""

from layeredrl.skills.dads import DADS
from layeredrl.skills.method import SkillInputs, SkillMethod
from layeredrl.skills.model_based import ModelBasedSkills, SkillModelConfig
from layeredrl.skills.splates import SPlaTES

__all__ = ["DADS", "ModelBasedSkills", "SPlaTES", "SkillInputs", "SkillMethod", "SkillModelConfig"]
