"""World models: encoder, dynamics, reward, termination and objective, as planners and skills see them."""

from layeredrl.world_model.config import ModelLearningConfig, OnlineLearningConfig
from layeredrl.world_model.encoders import Encoder, LearnedEncoder
from layeredrl.world_model.imagination import Imagination, ImaginationConfig
from layeredrl.world_model.latent import LatentConfig, LatentWorldModel
from layeredrl.world_model.latent_learner import LatentLearner, LatentLearningConfig
from layeredrl.world_model.learner import WorldModelLearner
from layeredrl.world_model.objective import Objective
from layeredrl.world_model.oracle import Oracle
from layeredrl.world_model.support import GridSupport, NeighbourSupport, Support
from layeredrl.world_model.value import ValueConfig, ValueLearner, ValueNet
from layeredrl.world_model.world_model import WorldModel

__all__ = [
    "Encoder",
    "GridSupport",
    "Imagination",
    "ImaginationConfig",
    "LatentConfig",
    "LatentLearner",
    "LatentLearningConfig",
    "LatentWorldModel",
    "LearnedEncoder",
    "ModelLearningConfig",
    "NeighbourSupport",
    "Objective",
    "OnlineLearningConfig",
    "Oracle",
    "Support",
    "ValueConfig",
    "ValueLearner",
    "ValueNet",
    "WorldModel",
    "WorldModelLearner",
]
