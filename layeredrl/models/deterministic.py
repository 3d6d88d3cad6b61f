"""Deterministic ensembles, a baseline of PETS (Chua et al. 2018, section 6, "D" and "DE")."""

from torch import Tensor, zeros_like

from layeredrl.models.ensemble import ProbabilisticEnsemble
from layeredrl.models.outputs import StepOutput
from layeredrl.models.rollout import StepModel


class DeterministicEnsemble(ProbabilisticEnsemble):
    """An ensemble of networks whose rollouts follow the predicted means, without noise.

    Its members still differ, and particles may change members (TS1). The networks should predict with a fixed standard
    deviation, as `GaussianMixtureMLP` does with `fixed_std`: the loss is then the squared error. Unlike rollouts,
    densities and samples are those of Gaussians with that standard deviation. The constructor is that of
    `ProbabilisticEnsemble`.
    """

    def step_model(self, *, loss_mode: bool) -> StepModel:
        model = super().step_model(loss_mode=loss_mode)

        def predict(state: Tensor, context: Tensor, action: Tensor) -> StepOutput:
            out = model.predict(state, context, action)
            return out._replace(std=zeros_like(out.std))

        return model._replace(predict=predict)
