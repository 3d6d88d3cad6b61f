"""Title of a report, its table across environments, and the comparison with published results."""

from collections.abc import Sequence

import numpy as np

from experiments.report.references import Published, published
from experiments.report.statistics import interval, iqm
from experiments.report.study import Study, slug
from experiments.report.tables import Cell, Table


def title_of(study: Study) -> str:
    """Return a title: the name of the study, if one made the runs, the settings, and the environments."""
    names = dict.fromkeys(str(run.study["name"]) for run in study.runs if "name" in run.study)
    labels, envs = list(study.styles()), study.environments
    what = _listed(labels) if len(labels) <= 4 else f"{len(labels)} settings"
    where = _listed(envs) if len(envs) <= 2 else f"{len(envs)} environments"
    if not labels:
        return "No readable runs"
    return f"{_listed(list(names))}: {what} on {where}" if names else f"{what[:1].upper()}{what[1:]} on {where}"


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def overview_table(study: Study) -> Table:
    """Return the final performance of each setting in each environment; empty for a single environment."""
    labels, rows = list(study.styles()), list[list[Cell]]()
    for env in study.environments if len(study.environments) > 1 else ():
        scores = study.scores(env)
        steps = max((run.n_steps for group in study.of(env) for run in study.counted(group)), default=0)
        rows.append([env, steps, *(_score(scores[label]) if label in scores else None for label in labels)])
    left_out = dict.fromkeys(
        f"{agent} was left out in {env}: {reason}"
        for run in study.runs
        for agent, reasons in _skipped(run.study).items()
        for env, reason in reasons.items()
        if env in study.environments
    )
    notes = ["interquartile mean of the runs with its 95 percent interval, and the number of runs", *left_out]
    title = f"Final performance in all environments: {study.metric}"
    return Table("overview", title, ("environment", "environment steps", *labels), rows, notes)


def _skipped(fields: dict[str, object]) -> dict[str, dict[str, str]]:
    skip = fields.get("skip", {})
    return {k: v for k, v in skip.items() if isinstance(v, dict)} if isinstance(skip, dict) else {}


def _score(scores: "np.typing.NDArray[np.float64]") -> str:
    point, low, high = (float(part[0]) for part in interval(iqm, scores[:, None]))
    ends = "" if np.isnan(low) else f" [{low:.4g}, {high:.4g}]"
    return f"{point:.4g}{ends} ({len(scores)})"


def published_table(study: Study, env: str) -> Table:
    """Return final performances beside the published results at the same number of frames; empty without any."""
    known, scores, rows = published(env, study.metric), study.scores(env), list[list[Cell]]()
    frames: dict[int, None] = {}
    for group in study.of(env) if known else ():
        if group.label in scores:
            runs, value = study.counted(group), scores[group.label]
            end = max(run.n_steps * run.action_repeat for run in runs)
            frames[end] = None
            std = float(value.std(ddof=1)) if len(value) > 1 else None
            rows.append([group.label, max(run.n_steps for run in runs), end, float(value.mean()), std, len(value), ""])
    for end in frames:
        rows += [_published_row(curve, end) for curve in known]
    columns = ("setting or method", "environment steps", "frames", "mean return", "std", "seeds", "published points")
    notes = (
        "published: mean and standard deviation over seeds of evaluations, on a straight line between the two points "
        "around these frames; sources in experiments/references/README.md",
        "ours: final performance as defined below, of training episodes unless --metric eval/episode_return",
    )
    return Table(f"published-{slug(env)}", f"{env}: beside the published", columns, rows, notes)


def _published_row(curve: Published, end: int) -> list[Cell]:
    i = int(np.searchsorted(curve.frames, end))
    inside = curve.frames[0] <= end <= curve.frames[-1]
    near = [j for j in ((i,) if inside and curve.frames[i] == end else (i - 1, i)) if 0 <= j < len(curve.frames)]
    points = "; ".join(f"{curve.mean[j]:g} at {curve.frames[j]:,.0f} frames" for j in near)
    value, std = (float(np.interp(end, curve.frames, y)) if inside else None for y in (curve.mean, curve.std))
    return [curve.label, None, end, value, std, int(curve.seeds[near[-1]]), points]
