"""Accuracy and calibration of a dynamics model on held-out transitions.

Three functions take any `Model` and return a dataclass of numbers, which `diagnostics.figures` draws: accuracy and
calibration of one step (R², densities, coverage), growth of the error of open-loop predictions, and the relation of
the members' disagreement to the error. They use `predict`, `get_log_prob` and `rollout` in evaluation mode, on the
device of model and data, with sums in float64.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from tianshou.data import Batch
from torch import Tensor

from layeredrl.checks import require_count, require_number
from layeredrl.models.density import mixture_log_prob, mixture_mean
from layeredrl.models.diagnostics.ranking import auroc, spearman
from layeredrl.models.model import Model
from layeredrl.models.normalization import varies

TRANSITION = ("state", "context", "act", "state_next")
LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
"""Probabilities of the central intervals whose coverage is measured."""
BAND_LEVEL = 0.9
"""Probability of the central interval of the particles whose coverage is measured along a rollout."""


# ------------------------------------------------------------------ one step


@dataclass(frozen=True)
class Scores:
    """Scores of one-step predictions for each dimension of the state: of the mixture (S,), or of each member (M, S)."""

    r2: Tensor
    """Share of the variance of the change in state that the predicted mean explains: 1 is perfect, 0 as good as a
    constant; NaN for dimensions that do not vary."""
    rmse: Tensor
    """Root mean squared error of the predicted mean, in the state's units."""
    nll: Tensor
    """Negative log density of the dimension by itself, nats."""
    residual_mean: Tensor
    """Mean of (true - predicted mean) / predicted std; 0 is ideal."""
    residual_std: Tensor
    """Standard deviation of the same; 1 is ideal, more is overconfident."""
    coverage: Tensor
    """Share of outcomes in the central interval of each level, (..., L, S); ideal is the level itself."""


@dataclass(frozen=True)
class OneStep:
    """One-step predictions on N held-out transitions."""

    change: Tensor
    """True change in state, (N, S)."""
    predicted: Tensor
    """Mean of the predicted change, over members and modes, (N, S)."""
    std: Tensor
    """Predicted standard deviation: within and between members, (N, S)."""
    aleatoric_std: Tensor
    """Predicted standard deviation within members: root of the mean of their variances, (N, S)."""
    varies: Tensor
    """True for dimensions whose change varies by more than rounding, (S,); only these enter the overall R²."""
    levels: Tensor
    """Probabilities of the central intervals, (L,)."""
    mixture: Scores
    """Scores of the average of all members' distributions, each (S,)."""
    members: Scores
    """Scores of the members, each (M, S)."""
    nll: float
    """Negative log density of the whole state (`get_log_prob`), nats; NaN if the model has no density."""

    def metrics(self) -> dict[str, float]:
        """Metrics to log; names of single dimensions and members end in their index.

        The overall R² (mean and minimum) leave out dimensions whose change does not vary; NaN if none varies. A model
        without a density has neither densities nor residuals nor coverage.
        """
        scores, expected, varies = self.mixture, self.levels.unsqueeze(-1), self.varies
        r2 = scores.r2[varies]
        result = {
            "model/r2": float(r2.mean()),
            "model/r2_min": float(r2.min()) if len(r2) else math.nan,
            "model/rmse": float(scores.rmse.square().mean().sqrt()),
        }
        names = ["r2", "rmse"]
        if not math.isnan(self.nll):
            names += ["nll", "residual_mean", "residual_std"]
            result |= {
                "model/nll": self.nll,
                "model/residual_mean": float(scores.residual_mean.mean()),
                "model/residual_std": float(scores.residual_std.square().mean().sqrt()),
                "model/calibration_error": float((scores.coverage - expected).abs().mean()),
            }
            for level, share in zip(self.levels.tolist(), scores.coverage.mean(-1).tolist(), strict=True):
                result[f"model/coverage_{100 * level:g}"] = share
        for name in names:
            for i, value in enumerate(getattr(scores, name).tolist()):
                result[f"model/{name}/state_{i}"] = value
            own = getattr(self.members, name)
            for i, value in enumerate((own[..., varies] if name == "r2" else own).mean(-1).tolist()):
                result[f"model/{name}/member_{i}"] = value
        return result


def evaluate_one_step(model: Model, data: Batch, levels: Sequence[float] = LEVELS) -> OneStep:
    """Compare one-step predictions with the true next states.

    Coverage is exact: an outcome lies in the central interval of probability p if and only if the predicted
    distribution function there, a mixture of normal ones, lies within p/2 of one half (the probability integral
    transform; Gneiting et al. 2007, "Probabilistic forecasts, calibration and sharpness").

    Args:
        model: Model to evaluate.
        data: Keys `state` (N, S), `context` (N, C), `act` (N, A), `state_next` (N, S).
        levels: Probabilities of the intervals, in (0, 1].
    """
    _require_rows(data, *TRANSITION)
    for level in levels:
        require_number("levels", level, 0, 1, open_low=True)
    with _evaluating(model):
        moments = _Moments.of(model, data)
        try:
            nll = -float(model.get_log_prob(*(data[key] for key in TRANSITION))[0].double().mean())
        except NotImplementedError:  # a deterministic model
            nll = math.nan
    change = data.state_next.double() - data.state.double()
    target = data.state_next.double()[:, None]  # (N, 1, S)
    mean, std, weights = (x.transpose(2, -1) for x in (moments.mean, moments.std, moments.weights.unsqueeze(-1)))
    cdf: Tensor = torch.special.ndtr((target.unsqueeze(-1) - mean) / std)  # (N, M, S, K)
    pit = (weights * cdf).sum(-1)
    log_prob = mixture_log_prob(target.unsqueeze(-1), mean.unsqueeze(-1), std.unsqueeze(-1), weights)  # (N, M, S)
    log_mean = torch.logsumexp(log_prob, 1) - math.log(log_prob.shape[1])
    variance, varies = _variance_of_change(data)
    units = torch.where(varies, variance, torch.nan), levels
    members = _scores(target - moments.member_mean, moments.member_var.sqrt(), log_prob, pit, units)
    mixture = _scores(target[:, 0] - moments.total_mean, moments.total_std, log_mean, pit.mean(1), units)
    return OneStep(
        change=change,
        predicted=moments.total_mean - data.state.double(),
        std=moments.total_std,
        aleatoric_std=moments.member_var.mean(1).sqrt(),
        varies=varies,
        levels=torch.as_tensor(levels, dtype=torch.float64, device=change.device),
        mixture=mixture,
        members=members,
        nll=nll,
    )


# ------------------------------------------------------------------ many steps


@dataclass(frozen=True)
class OpenLoop:
    """Rollouts along N held-out trajectories of H steps; entry k of a horizon axis is k steps after the start."""

    rmse: Tensor
    """Root mean squared error of the mean over members and particles, in the state's units, (H+1, S)."""
    member_rmse: Tensor
    """Root mean squared error of each member's mean over its particles, (M, H+1, S)."""
    band: Tensor
    """The ensemble's own standard deviation, within and between members; root mean square, (H+1, S)."""
    epistemic: Tensor
    """Standard deviation over members of their means; root mean square over trajectories, (H+1, S)."""
    baseline: Tensor
    """Root mean squared distance of the true states from the first one: the error of "nothing changes", (H+1, S)."""
    moves: Tensor
    """True where the baseline is more than rounding, (H+1, S); only these dimensions enter the relative error."""
    coverage: Tensor
    """Share of true states inside the particles' central interval of probability `BAND_LEVEL`, (H+1, S)."""
    diverged: float
    """Share of particles that left the finite range; 0 if the model does not report it."""

    def metrics(self) -> dict[str, float]:
        """Metrics to log, at horizons 1, 2, 4, ... and the last one; `relative_rmse` is relative to the baseline."""
        last = len(self.rmse) - 1
        result = {"model/open_loop/diverged": self.diverged}
        for k in sorted({2**i for i in range(last.bit_length())} | {last}):
            for name in ("rmse", "band", "baseline"):
                result[f"model/open_loop/{name}_{k}"] = float(getattr(self, name)[k].square().mean().sqrt())
            moving = self.moves[k]
            result[f"model/open_loop/relative_rmse_{k}"] = float((self.rmse[k] / self.baseline[k])[moving].mean())
            result[f"model/open_loop/coverage_{k}"] = float(self.coverage[k].mean())
        return result


def evaluate_open_loop(
    model: Model, data: Batch, n_particles: int = 50, *, generator: torch.Generator | None = None
) -> OpenLoop:
    """Compare open-loop predictions along true action sequences with the true states.

    Args:
        model: Model to evaluate.
        data: Keys `state` (N, H+1, S), `context` (N, C), `act` (N, H, A); no trajectory crosses an episode's end.
        n_particles: Minimum number of particles for each member; a model with fewer is rolled out several times. Few
            particles add sampling error to `rmse` and lower `coverage` by about 2 / n_particles.
        generator: Source of randomness, on the model's device.
    """
    _require_rows(data, *TRANSITION[:3])
    require_count("n_particles", n_particles)
    n, horizon = data.act.shape[:2]
    if data.state.ndim != 3 or data.state.shape[1] != horizon + 1:
        raise ValueError(f"data.state has shape {tuple(data.state.shape)}, expected ({n}, {horizon + 1}, S)")
    repeats = -(-n_particles // model.n_particles_per_model)
    rows = [x.repeat_interleave(repeats, 0) for x in (data.state[:, 0], data.context, data.act)]
    with _evaluating(model):
        rollout = model.rollout(*rows, generator=generator, statistics=False)
    states = rollout.state.double()  # (N * repeats, M, P, H+1, S)
    states = states.unflatten(0, (n, repeats)).movedim(1, 2).flatten(2, 3)  # (N, M, P, H+1, S), more particles
    truth = data.state.double()
    member_mean = states.mean(2)
    # Members share their noise, so differences between their means are no sampling error and need no correction.
    variance = states.var(2, correction=min(1, states.shape[2] - 1)).mean(1) + member_mean.var(1, correction=0)
    particles, x = states.flatten(1, 2), truth[:, None]
    # The rank of the truth among the particles is uniform if all are drawn from one distribution.
    below = (particles < x).sum(1) + 0.5 * (particles == x).sum(1)
    rank = (below + 0.5) / (particles.shape[1] + 1)
    baseline = _rms(truth - truth[:, :1])
    return OpenLoop(
        rmse=_rms(member_mean.mean(1) - truth),
        member_rmse=_rms(member_mean - truth[:, None]),
        band=_rms(variance.sqrt()),
        epistemic=_rms(member_mean.std(1, correction=0)),
        baseline=baseline,
        moves=varies(baseline, truth.abs().amax((0, 1)), data.state.dtype),
        coverage=((2 * rank - 1).abs() <= BAND_LEVEL).double().mean(0),
        diverged=float(rollout.diverged[..., -1].double().mean()) if "diverged" in rollout else 0.0,
    )


# ------------------------------------------------------------------ disagreement


@dataclass(frozen=True)
class Disagreement:
    """Relation of the members' disagreement to the error, and to the distance from the training data."""

    epistemic_std: Tensor
    """Standard deviation over members of their predicted means, (N, S)."""
    error: Tensor
    """Absolute error of the predicted mean, (N, S)."""
    rank_correlation: Tensor
    """Spearman's rank correlation of the two, for each dimension, (S,); NaN if members never differ, e.g. with one."""
    score: Tensor
    """Disagreement on held-out data, root mean square over the dimensions whose change varies, in standard deviations
    of that change, (N,)."""
    off_score: Tensor | None
    """The same on data off the training distribution, (F,)."""
    auroc: float
    """Probability that a row off the distribution has the higher score; NaN without such data."""

    def metrics(self) -> dict[str, float]:
        """Metrics to log; names of single dimensions end in their index. None for a model of one member."""
        if self.rank_correlation.isnan().all():
            return {}
        name = "model/disagreement/rank_correlation"
        result = {"model/disagreement/auroc": self.auroc, name: float(self.rank_correlation.mean())}
        for i, value in enumerate(self.rank_correlation.tolist()):
            result[f"{name}/state_{i}"] = value
        return result


def evaluate_disagreement(model: Model, data: Batch, off: Batch | None = None) -> Disagreement:
    """Compare the members' disagreement with the error, and its size on and off the training distribution.

    Args:
        model: Model to evaluate.
        data: Keys `state` (N, S), `context` (N, C), `act` (N, A), `state_next` (N, S), from the training distribution.
        off: Keys `state` (F, S), `context` (F, C), `act` (F, A), from anywhere else.
    """
    _require_rows(data, *TRANSITION)
    variance, varies = _variance_of_change(data)
    unit = variance.sqrt()
    with _evaluating(model):
        moments = _Moments.of(model, data)
        epistemic = moments.member_mean.std(1, correction=0)
        score, off_score = _size(epistemic / unit, varies), None
        if off is not None:
            _require_rows(off, *TRANSITION[:3])
            off_spread = _Moments.of(model, off).member_mean.std(1, correction=0)
            off_score = _size(off_spread / unit, varies)
    error = (data.state_next.double() - moments.total_mean).abs()
    correlations = [spearman(a, b) for a, b in zip(epistemic.unbind(-1), error.unbind(-1), strict=True)]
    return Disagreement(
        epistemic_std=epistemic,
        error=error,
        rank_correlation=torch.tensor(correlations, dtype=torch.float64),
        score=score,
        off_score=off_score,
        auroc=math.nan if off_score is None else auroc(score, off_score),
    )


# ------------------------------------------------------------------ inside


@dataclass(frozen=True)
class _Moments:
    """A one-step prediction in float64, (N, M, K, S), and its moments within and between members."""

    mean: Tensor
    weights: Tensor
    std: Tensor
    member_mean: Tensor
    member_var: Tensor

    @classmethod
    def of(cls, model: Model, data: Batch) -> "_Moments":
        mean, weights, std = (x.double() for x in model.predict(data.state, data.context, data.act)[:3])
        std = std.clamp(min=torch.finfo(torch.float32).tiny)  # zero for a deterministic model
        member_mean = mixture_mean(mean, weights)
        member_var = mixture_mean(std.square() + (mean - member_mean.unsqueeze(2)).square(), weights)
        return cls(mean, weights, std, member_mean, member_var)

    @property
    def total_mean(self) -> Tensor:
        """Mean over members and modes, (N, S)."""
        return self.member_mean.mean(1)

    @property
    def total_std(self) -> Tensor:
        """Standard deviation within and between members, (N, S)."""
        return (self.member_var.mean(1) + self.member_mean.var(1, correction=0)).sqrt()


def _scores(error: Tensor, std: Tensor, log_prob: Tensor, pit: Tensor, units: tuple[Tensor, Sequence[float]]) -> Scores:
    """Average errors, stds, log densities and distribution functions (N, ..., S) over the rows."""
    variance, levels = units
    z, distance = error / std, (2 * pit - 1).abs()
    return Scores(
        r2=1 - error.square().mean(0) / variance,
        rmse=_rms(error),
        nll=-log_prob.mean(0),
        residual_mean=z.mean(0),
        residual_std=z.std(0, correction=0),
        coverage=torch.stack([(distance <= level).double().mean(0) for level in levels], -2),
    )


def _variance_of_change(data: Batch) -> tuple[Tensor, Tensor]:
    """Variance of the change in state, (S,), and a mask (S,) that is true where it exceeds that of rounding."""
    variance = (data.state_next.double() - data.state.double()).var(0, correction=0)
    return variance, varies(variance.sqrt(), data.state.double().abs().amax(0), data.state.dtype)


def _size(x: Tensor, varies: Tensor) -> Tensor:
    """Root mean square of x (N, S) over the dimensions where `varies` (S,) is true, (N,); zero if there is none."""
    return (x[:, varies].square().sum(-1) / varies.sum().clamp(min=1)).sqrt()


def _rms(x: Tensor) -> Tensor:
    return x.square().mean(0).sqrt()


@contextmanager
def _evaluating(model: Model) -> Iterator[None]:
    """Set the model to evaluation mode, without gradients."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def _require_rows(data: Batch, *keys: str) -> None:
    """Raise unless `data` has tensors of these names, the first one's number of rows in each, at least one."""
    for key, value in ((key, data.get(key)) for key in keys):
        if not isinstance(value, Tensor):
            raise TypeError(f"data.{key} is {type(value).__name__}, expected a torch.Tensor")
        if len(value) != len(data[keys[0]]) or not len(value):
            raise ValueError(f"data.{key} has {len(value)} rows, expected those of {keys[0]} and at least one")
