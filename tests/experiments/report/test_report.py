import base64
import csv
import hashlib
import io
import itertools
import json
import math
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image

from experiments.report import __main__ as report
from experiments.report.metrics import read_metrics
from experiments.report.references import published
from experiments.report.runs import find_runs, group_runs, read_run
from experiments.report.settings import settings_tables
from experiments.report.statistics import (
    MEASURED,
    bin_curves,
    compare_pairs,
    coverage_note,
    holm,
    improvement,
    interval,
    iqm,
    mean_improvement,
    rank_test,
    smallest_p,
)
from experiments.report.study import Study, overall_table
from experiments.report.tables import Table
from tests.experiments.commands import call
from tests.experiments.conftest import Refusal
from tests.experiments.run_folders import draw, write_run, write_study

pytest.importorskip("rliable")
statistics = pytest.importorskip("experiments.benchmarks.statistics")  # it needs scipy, which comes with rliable


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Default number of resamples in tests: they take most of a report's time."""
    monkeypatch.setitem(interval.__kwdefaults__, "reps", 50)


class Page(HTMLParser):
    """Content of a page as a browser sees it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif not self.open or self.open[-1] != "style":
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def curve(self, chart: str, name: str) -> np.ndarray:
        """Points (N, 2) of a curve, in the units of the axes, of the chart with this accessible name."""
        inside, ends, size = False, [], []
        for tag, attrs in self.tags:
            if "data-range" in attrs:
                ends = [float(end) for end in str(attrs["data-range"]).split()]
                size = [float(end) for end in str(attrs["data-frame"]).split()][2:]
            inside = attrs["aria-label"] == chart if "aria-label" in attrs else inside
            if inside and tag == "polyline" and attrs.get("data-name") == name:
                points = np.array([point.split(",") for point in str(attrs["points"]).split()], float) / size
                return ends[::2] + (points * (1, -1) + (0, 1)) * (ends[1] - ends[0], ends[3] - ends[2])
        raise AssertionError(f"{name} is not in {chart}")

    def images(self) -> dict[str, Image.Image]:
        """Pictures by their alternative text; each has to be embedded and complete."""
        found = {}
        for attrs in self.all("img"):
            head, data = str(attrs["src"]).split(",", 1)
            image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
            image.load()
            assert head == f"data:image/{str(image.format).lower()};base64"
            found[str(attrs["alt"])] = image
        return found


def make_report(*args: object, formats: Sequence[str] = ()) -> Page:
    call(report.main, *args, "--formats", *formats)  # figures take most of the time
    return Page(Path("report.html").read_text())


def rows_of(name: str) -> list[dict[str, str]]:
    with Path(f"report-{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_report_needs_no_other_file_no_network_and_runs_its_own_script_only(tmp_path):
    study = write_study(tmp_path / "runs", {"pets": 100, "sac": 50}, seeds=2)
    draw(study / "pets-0" / "model.png")
    page = make_report(study)
    assert page.open == []
    assert page.all("script") == [{}]
    (policy,) = [attrs["content"] for attrs in page.all("meta") if "http-equiv" in attrs]
    allowed = base64.b64encode(hashlib.sha256(page.scripts[0].encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'"
    assert all(attrs["href"] == "data:," for attrs in page.all("link"))
    ids = {attrs.get("id") for _, attrs in page.tags}
    assert all(str(attrs["href"]).startswith("#") and attrs["href"][1:] in ids for attrs in page.all("a"))
    assert not any("src" in attrs for tag, attrs in page.tags if tag != "img")
    style = page.all("meta")
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in style
    assert "url(" not in Path("report.html").read_text()
    assert any("Model" in alt for alt in page.images())


def test_curves_are_drawn_to_scale_and_written_as_png_and_pdf(tmp_path):
    page = make_report(write_study(tmp_path / "runs", {"pets": 100, "sac": 50}, seeds=2), formats=("png", "pdf"))
    title = "ContinuousCartPole-v0: env/episode_return"
    for against, unit in (
        ("environment steps", 1),
        ("wall time in seconds", 10),
        ("CPU time of the training process in seconds", 20),
    ):
        found = page.curve(f"{title} against {against}, by setting", "sac")
        expected = [[(100 * i - 50) / unit, 50 * min(i, 8) / 8] for i in range(1, 11)]
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=0.05)
    figures = sorted(path.name for path in Path("report-figures").iterdir())
    names = ("cpu-seconds", "improvement", "seconds", "steps")
    assert figures == [f"ContinuousCartPole-v0-{name}.{kind}" for name in names for kind in ("pdf", "png")]
    assert all(iio.imread(path).std() > 10 for path in Path("report-figures").glob("*.png"))
    assert all(path.read_bytes()[:5] == b"%PDF-" for path in Path("report-figures").glob("*.pdf"))


def test_published_curves_are_beside_those_of_the_task(tmp_path):
    """The numbers are lines of experiments/references."""
    write_run(tmp_path / "runs" / "a", env="HalfCheetah-v5", n_steps=10_000)
    write_run(tmp_path / "runs" / "b", env="dm_control/finger-spin-v0", n_steps=100_000, action_repeat=2)
    page = make_report(tmp_path / "runs")
    chart = "HalfCheetah-v5: env/episode_return against environment steps, by setting"
    simba = page.curve(chart, "SimbaV2 (UTD 2), published on HalfCheetah-v4")
    value = -7 + (5887 + 7) / 5  # between the points at 0 and 50,000
    np.testing.assert_allclose(simba, [[0, -7], [10_000, value]], atol=3)
    assert "CrossQ, published on HalfCheetah-v4: 6345 at 50,000, its first point" in page.text
    chart = "dm_control/finger-spin-v0: env/episode_return against environment steps, by setting"
    tdmpc2 = page.curve(chart, "TD-MPC2, published on dm_control/finger-spin")
    np.testing.assert_allclose(tdmpc2, [[0, 0], [50_000, 947.5], [100_000, 974.4]], atol=10)
    with pytest.raises(AssertionError, match="is not in"):
        page.curve(
            chart.replace("environment steps", "wall time in seconds"), "SAC, published on dm_control/finger-spin"
        )

    cheetah = {row["setting or method"]: row for row in rows_of("published-HalfCheetah-v5")}
    assert next(iter(cheetah)) == "pets"
    row = cheetah["SimbaV2 (UTD 2), published on HalfCheetah-v4"]
    assert (float(row["mean return"]), row["seeds"]) == (pytest.approx(value), "10")
    assert row["published points"] == "-7 at 0 frames; 5887 at 50,000 frames"
    assert cheetah["CrossQ, published on HalfCheetah-v4"]["mean return"] == ""
    spin = {row["setting or method"]: row for row in rows_of("published-dm_control-finger-spin-v0")}
    assert [spin["pets"][key] for key in ("environment steps", "frames")] == ["100000", "200000"]
    row = spin["TD-MPC2, published on dm_control/finger-spin"]
    assert [row[key] for key in ("mean return", "std", "seeds")] == ["974.4", "9.2", "3"]


def test_published_curves_are_for_returns_of_their_tasks_only(tmp_path):
    run = read_run(write_run(tmp_path / "a"))
    assert (run.action_repeat, read_run(write_run(tmp_path / "b", action_repeat=2)).action_repeat) == (1, 2)
    assert published("Pendulum-v1", "env/episode_return") == published("HalfCheetah-v5", "env/success") == []
    assert published("PETSHalfCheetah-v0", "env/episode_return") == []
    cup = published("dm_control/ball_in_cup-catch-v0", "eval/episode_return")
    assert {curve.task for curve in cup} == {"dm_control/cup-catch"}
    assert {curve.task for curve in published("dm_control/finger-turn_hard-v0", "eval/episode_return")} == {
        "dm_control/finger-turn-hard"
    }
    sac = next(curve for curve in cup if curve.method == "SAC")
    assert len(sac.until(1e9)) == len(sac.frames) == 11
    assert len(sac.until(-1)) == 0


def test_runs_with_different_action_repeats_are_drawn_against_frames(tmp_path):
    for repeat in (1, 2):
        write_run(tmp_path / "runs" / str(repeat), env="dm_control/finger-spin-v0", action_repeat=repeat)
    frames = "frames: environment steps times action repeat"
    chart = f"dm_control/finger-spin-v0: env/episode_return against {frames}, by setting"
    page = make_report(tmp_path / "runs")
    ends = [page.curve(chart, f"pets, action_repeat {repeat}")[-1, 0] for repeat in (1, 2)]
    assert ends == pytest.approx([950, 1900], rel=1e-3)
    assert page.curve(chart, "SAC, published on dm_control/finger-spin")[-1, 0] == pytest.approx(2000, rel=1e-3)


def test_a_report_begins_with_the_study_and_a_table_across_environments(tmp_path):
    study = write_study(tmp_path / "runs" / "first", {"pets": 100, "sac": 50}, seeds=2)
    write_run(study / "b", env="B-v0", level=80)
    fields = {"name": "first", "skip": {"sac": {"B-v0": "its actions are discrete", "C-v0": "no"}}}
    (study / "study.json").write_text(json.dumps(fields))
    page = make_report(study)
    assert page.text.startswith("first: pets and sac on B-v0 and ContinuousCartPole-v0 first: pets and sac on")
    b, cartpole = rows_of("overview")
    assert list(b.items()) == [("environment", "B-v0"), ("environment steps", "1000"), ("pets", "80 (1)"), ("sac", "")]
    assert cartpole["sac"] == "50 [50, 50] (2)"
    assert "sac was left out in B-v0: its actions are discrete" in page.text
    assert "C-v0" not in page.text
    (study / "study.json").write_text("[")
    assert make_report(study).text.startswith("Pets and sac on B-v0 and ContinuousCartPole-v0 ")


def test_settings_that_agents_do_not_share_are_folded(tmp_path):
    for env in ("A-v0", "B-v0"):
        for agent, own in (("pets", {"planner": {"n": 3}}), ("sac", {"lr": 0.1}), ("random", {})):
            settings = {**own, "n_random": len(agent), **({"by_env": env} if agent == "pets" else {})}
            write_run(tmp_path / "runs" / f"{agent}-{env}", agent=agent, env=env, settings=settings)
    page = make_report(tmp_path / "runs")
    assert "B-v0, A-v0: settings that differ" in page.text
    assert [row["setting"] for row in rows_of("settings-A-v0")] == ["agent", "settings.n_random"]
    assert [row["setting"] for row in rows_of("settings-pets")] == ["settings.by_env"]
    assert [row["setting"] for row in rows_of("settings-own-pets")] == ["settings.planner.n"]
    assert "<details><summary>sac: settings that not every agent has (1)</summary>" in Path("report.html").read_text()
    assert "<details><summary>sac: settings that not every agent has (1)</summary>" in Path("report.md").read_text()


def test_numbers_of_a_study_whose_answer_is_known(tmp_path):
    write_study(tmp_path / "runs", {"pets": 100, "sac": 50})
    page = make_report(tmp_path / "runs")
    assert page.text.startswith("Pets and sac on ContinuousCartPole-v0 ")
    pets, sac = rows_of("final-ContinuousCartPole-v0")
    assert (pets["setting"], pets["runs"], sac["setting"], sac["runs"]) == ("pets", "5", "sac", "5")
    assert [float(pets[key]) for key in ("IQM", "mean", "median", "least", "greatest")] == pytest.approx(
        [100.002, 100.002, 100.002, 100, 100.004]
    )
    assert 100 <= float(pets["95 % from"]) <= 100.002 <= float(pets["95 % to"]) <= 100.004
    assert float(pets["median seconds"]) == 100
    (pair,) = rows_of("improvement-ContinuousCartPole-v0")
    assert [float(pair[key]) for key in ("P(first better)", "95 % from", "95 % to")] == [1, 1, 1]
    assert float(pair["p (Holm)"]) == pytest.approx(2 / math.comb(10, 5))
    assert pair["difference"] == "pets is better"
    assert "pets, sac: the interval of 5 runs is too narrow" in page.text
    assert "10 runs, 10 of them finished" in page.text
    assert "| pets | 5 | 100 | 100 | 100 | 100 | 100 | 100 | 100 | 100 |" in Path("report.md").read_text()

    before, state = Path("report.html").read_bytes(), np.random.get_state()[1]  # noqa: NPY002
    make_report(tmp_path / "runs")  # the same runs make the same report, and leave numpy's generator as it was
    assert Path("report.html").read_bytes() == before
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_first_steps_at_which_returns_were_reached(tmp_path):
    runs = write_study(tmp_path / "runs", {"pets": 100, "sac": 50}, seeds=3)  # an eighth more every 100 steps
    write_run(runs / "pets-3", seed=3, level=80, n_steps=2000)
    write_run(runs / "pets-4", seed=4, level=99, finished=False)
    write_run(tmp_path / "runs" / "other", env="Other-v0", level=-80)
    page = make_report(runs, "--reached", "60", "-1e3", "ContinuousCartPole-v0=99")
    rows = [list(row.values()) for row in rows_of("reached-ContinuousCartPole-v0")]
    assert rows == [
        ["60.0", "pets", "4", "4", "500", "500", "1200", "0: 500, 1: 500, 2: 500, 3: 1200"],
        ["60.0", "sac", "3", "0", *["not within 1000"] * 3, ", ".join(f"{i}: not within 1000" for i in range(3))],
        ["-1000.0", "pets", "4", "4", "100", "100", "200", "0: 100, 1: 100, 2: 100, 3: 200"],
        ["-1000.0", "sac", "3", "3", "100", "100", "100", "0: 100, 1: 100, 2: 100"],
        ["99.0", "pets", "4", "3", "800", "800", "not within 2000", "0: 800, 1: 800, 2: 800, 3: not within 2000"],
        ["99.0", "sac", "3", "0", *["not within 1000"] * 3, ", ".join(f"{i}: not within 1000" for i in range(3))],
    ]
    assert [row["env/episode_return"] for row in rows_of("reached-Other-v0")] == ["60.0", "-1000.0"]
    assert "first environment step at which env/episode_return was reached" in page.text
    run = read_run(runs / "pets-0")
    assert [run.reached("env/episode_return", 60, n) for n in (1, 3, 7)] == [500, 700, None]


def test_runs_that_ended_at_a_return_are_finished_and_noted(tmp_path):
    run = write_run(tmp_path / "runs" / "a")
    config = json.loads((run / "config.json").read_text())
    config["trainer"] |= {"n_total_env_steps": 5000, "stop_at_return": 100.0}
    (run / "config.json").write_text(json.dumps(config))
    write_run(tmp_path / "runs" / "b", seed=1)
    page = make_report(tmp_path / "runs")
    assert "2 runs, 2 of them finished" in page.text
    assert "pets: 1 of 2 runs ended early, at trainer.stop_at_return" in page.text


def test_a_trained_run(trained):
    page = make_report(trained)
    assert "trained — pets, seed 0, finished" in page.text
    assert "a single run has no interval" in page.text
    (run,) = find_runs([trained])
    (row,) = rows_of("final-ContinuousCartPole-v0")
    returns = run.metrics["env/episode_return"]
    late = returns[returns[:, 0] > 0.9 * 60, 1]
    assert float(row["IQM"]) == pytest.approx(late.mean() if len(late) else returns[-1, 1])


def test_a_last_line_without_its_end_is_damaged(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("n_total_env_steps,a\n1,2.5\n2,-1")  # of -157.9
    metrics = read_metrics(path)
    assert metrics.columns["a"].tolist() == [[1.0, 2.5]]
    assert (metrics.n_steps, metrics.notes) == (1, ["metrics.csv is damaged in line 3; left out"])


def test_unfinished_and_damaged_runs_are_noted_and_do_not_count(tmp_path):
    runs = write_study(tmp_path / "runs", {"pets": 100}, seeds=2)
    write_run(runs / "half", seed=7, level=900, finished=False)
    (write_run(runs / "no-settings") / "config.json").unlink()
    (write_run(runs / "bad-settings") / "config.json").write_text("{")
    (write_run(runs / "other-settings") / "config.json").write_text('{"lr": 1}')
    (write_run(runs / "just-begun", seed=9) / "metrics.csv").unlink()
    with (runs / "pets-1" / "metrics.csv").open("a") as file:
        file.write("999,12\n1000,x,,,\n")
    draw(runs / "pets-0" / "model.png")
    (runs / "pets-0" / "plan.png").write_bytes((runs / "pets-0" / "model.png").read_bytes()[:200])
    page = make_report(runs)
    (row,) = rows_of("final-ContinuousCartPole-v0")
    assert row["runs"] == "2"
    assert float(row["greatest"]) < 101
    for note in (
        "half: not finished: 500 of 1000 environment steps",
        "no-settings: there is no config.json",
        "bad-settings: config.json cannot be read",
        "other-settings: config.json holds no settings of a run",
        "just-begun: there is no metrics.csv",
        "pets-1: metrics.csv is damaged in line 22, 23; left out",
        "pets: 2 of 4 runs are left out",
        "plan.png is left out: it is damaged",
    ):
        assert note in page.text, note
    assert not any("plan" in alt for alt in page.images())
    make_report(runs, "--unfinished")
    (row,) = rows_of("final-ContinuousCartPole-v0")
    assert (row["runs"], float(row["greatest"])) == ("3", pytest.approx(900.007))


def test_pictures_numbers_and_the_newest_of_those_drawn_while_training(tmp_path):
    run = write_run(tmp_path / "runs" / "a")
    for name in ("learning_curve", "model_calibration_agent", "plan", "skills"):
        draw(run / f"{name}.png")
    for step in (20, 40, 60):
        draw(run / "pictures" / f"skill-fan-{step:09d}.png")
    iio.imwrite(run / "policy.gif", np.arange(3 * 8 * 8 * 3, dtype=np.uint8).reshape(3, 8, 8, 3), loop=0)
    (run / "diagnosis.json").write_text(
        '{"random": {"one_step/r2": 0.5}, "agent": {"one_step/r2": 0.25, "model/r2/x": null}}'
    )
    (run / "code.json").write_text('{"layeredrl": "0.1 <b>"}')
    page = make_report(run)
    images = page.images()
    kinds = [alt.split(":")[0] for alt in images]
    assert kinds == [
        *("Learning curve", "Model", "A plan and its outcome", "Skills", "While training"),
        "Video of the policy",
    ]
    assert "While training: skill-fan-000000060" in images
    assert images["Video of the policy: policy"].n_frames == 3
    for text in (
        "2 earlier ones are in the run's folder",
        "one_step/r2 0.5 0.25",
        "model/r2/x — constant",
        "layeredrl 0.1 <b>",
        "model/loss",
    ):
        assert text in page.text, text


def test_content_of_files_is_escaped(tmp_path):
    bad = '<script>alert("x")</script>'
    write_run(tmp_path / "runs" / "a", env=bad, settings={"x|y": bad})
    write_run(tmp_path / "runs" / "b", env=bad, settings={"x|y": "1"}, seed=1)
    page = make_report(tmp_path / "runs")
    assert page.all("script") == [{}]
    assert f"{bad}: final performance" in page.text
    assert all(
        line.count("|") - line.count("\\|") == 4
        for line in Path("report.md").read_text().splitlines()
        if "x\\|" in line and "settings." in line
    )
    assert "x\\|y" in Path("report.md").read_text()


def test_settings_make_groups(tmp_path):
    runs = tmp_path / "runs"
    for i, (width, env) in enumerate(itertools.product((16, 32), ("A-v0", "B-v0"))):
        for seed in range(2):
            write_run(runs / f"p{i}-{seed}", env=env, seed=seed, settings={"width": width, "by_env": env})
            write_run(runs / f"s{i}-{seed}", agent="sac", env=env, seed=10 * i + seed, settings={"by_env": env})
    found = find_runs([runs, runs / "p0-0"])
    assert len(found) == 16
    groups = group_runs(found)
    assert [(g.env, g.label, len(g.runs)) for g in groups] == [
        *(("A-v0", "pets, width 16", 2), ("B-v0", "pets, width 16", 2)),
        *(("A-v0", "pets, width 32", 2), ("B-v0", "pets, width 32", 2)),
        *(("A-v0", "sac", 4), ("B-v0", "sac", 4)),
    ]
    assert [g.notes() for g in groups] == [[]] * 6
    by_agent = group_runs(found, ["agent", "env"])
    assert [(g.env, g.label, len(g.runs)) for g in by_agent[:2]] == [("A-v0", "pets", 4), ("B-v0", "pets", 4)]
    seeds, mixed = by_agent[0].notes()
    assert seeds.startswith("several runs have the seed 0, 1")
    assert mixed == "runs that differ in more than the seed: settings.width"
    study = Study(found, groups, "env/episode_return")
    overall = overall_table(study)
    assert [row[:3] for row in overall.rows] == [
        ["2 of 2", "pets, width 16", "pets, width 32"],
        ["2 of 2", "pets, width 16", "sac"],
        ["2 of 2", "pets, width 32", "sac"],
    ]
    tables = {table.name: [row[0] for row in table.rows] for table in settings_tables(study)}
    assert tables["settings-sac"] == ["settings.by_env"]
    assert tables["settings-A-v0"] == ["agent", "settings.width"]


def test_labels_stay_short_where_many_settings_differ(tmp_path):
    for i in range(3):
        write_run(tmp_path / "letters" / str(i), settings={"a": i, "b": i, "c": i})
        name = f"kind{'ABC'[i]}-envs-Cart-v0-seed"  # as in a study
        for seed in range(2):
            write_run(tmp_path / "study" / f"{name}{seed}", env="envs:Cart-v0", settings={"a": i, "b": i, "c": i})
    for folder, labels in (("letters", ["A", "B", "C"]), ("study", ["kindA", "kindB", "kindC"])):
        assert [g.label for g in group_runs(find_runs([tmp_path / folder]))] == [f"pets {label}" for label in labels]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "no runs are given"),
        (("nowhere",), "nowhere is no folder"),
        (("empty",), "empty holds no run"),
        (("runs", "--metric", "env/episode_retrun"), "did you mean env/episode_return?"),
        (("runs", "--metric", "return"), "did you mean env/episode_return?"),
        (("runs", "--group-by", "agnt"), "no setting of these runs; did you mean agent?"),
        (("runs", "--output", "report.pdf"), "expected a name that ends in .html"),
        (("runs", "--output", "no/report.html"), "cannot be written"),
        (("runs", "--final-share", "0"), "--final-share is 0.0"),
        (("runs", "--reached", "x=1e"), "reached is 'x=1e', expected a return, or ENVIRONMENT=RETURN"),
        (("runs", "--reached", "Other-v0=1"), "reached names 'Other-v0', expected one of ContinuousCartPole-v0"),
        (("runs", "--in-a-row", "0"), "--in-a-row is 0, expected at least 1"),
        (("runs", "--colour"), "--colour"),
    ],
)
def test_bad_input_gets_one_line(tmp_path, refusal: Refusal, args, message):
    Path("empty").mkdir()
    write_run(tmp_path / "runs" / "a")
    assert message in refusal(call, report.main, *args)


def test_rliables_own_example():
    """The arrays and answers of tests/rliable/metrics_test.py at github.com/google-research/rliable."""
    x, y = np.array([[1, 2], [2, 2], [1, 1], [2, 1]]), np.array([[1, 1], [2, 2], [3, 3]])
    assert iqm(x.reshape(-1, 1)) == pytest.approx([1.5])
    assert iqm(y.reshape(-1, 1)) == pytest.approx([2])
    assert improvement(x, y).mean() == pytest.approx(1 / 3)
    assert mean_improvement(x[:, :1], y[:, :1], x[:, 1:], y[:, 1:]) == pytest.approx([1 / 3])


@pytest.mark.parametrize("n", [1, 3, 4, 8])
def test_statistics_are_those_of_rliable(n):
    from rliable import metrics

    rng = np.random.default_rng(n)
    x, y = rng.integers(0, 6, (n, 4)).astype(float), rng.integers(0, 6, (5, 4)).astype(float)
    np.testing.assert_allclose(iqm(x), [metrics.aggregate_iqm(column[:, None]) for column in x.T])
    assert improvement(x, y).mean() == pytest.approx(metrics.probability_of_improvement(x, y))
    plain = [np.mean([(a > b) + 0.5 * (a == b) for a in x[:, t] for b in y[:, t]]) for t in range(4)]
    np.testing.assert_allclose(improvement(x, y), plain)


def test_interval_is_that_of_all_resamples():
    """Three runs have 27 resamples: the ends are quantiles of their means."""
    scores = np.array([0.0, 1.0, 5.0])
    means = [np.mean(drawn) for drawn in itertools.product(scores, repeat=3)]
    low, high = np.quantile(means, [0.025, 0.975], method="inverted_cdf")
    found = interval(iqm, scores[:, None], reps=4000)
    assert found.point == pytest.approx([2])
    assert (found.low, found.high) == (pytest.approx([low]), pytest.approx([high]))
    alone = interval(iqm, scores[:1, None])
    assert alone.point == [0]
    assert np.isnan([alone.low, alone.high]).all()


def test_rank_test_and_its_correction():
    from scipy.stats import mannwhitneyu

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=5), rng.normal(1.5, 1, size=6)
    assert rank_test(x, y) == pytest.approx(mannwhitneyu(x, y, method="exact").pvalue)
    assert rank_test(np.arange(3.0), np.arange(3.0) + 9) == pytest.approx(smallest_p(3, 3)) == pytest.approx(0.1)
    assert rank_test(x[:1], y) == 1
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    few = compare_pairs({"a": np.arange(3.0), "b": np.arange(3.0) + 9})
    assert [pair.verdict for pair in few] == ["too few runs to tell"]
    same = compare_pairs({"a": np.arange(8.0), "b": np.arange(8.0) + 0.5})
    assert [pair.verdict for pair in same] == ["no difference shown"]


def test_curves_on_a_common_grid():
    steps = np.arange(10, 101, 10.0)
    short = np.stack([steps, steps], 1)
    long = np.array([[5, 1.0], [25, 3], [95, 10], [100, 12], [400, 99]])
    curve = bin_curves([short, long], max_bins=4)  # bins (0, 25], (25, 50], (50, 75], (75, 100]
    assert curve is not None
    assert curve.x.tolist() == [12.5, 37.5, 62.5, 87.5]
    assert curve.each[0].tolist() == [15, 40, 65, 90]
    assert curve.each[1] == pytest.approx([2, 2 + 9 / 3, 2 + 18 / 3, 11])
    assert curve.value.point == pytest.approx(curve.each.mean(0))
    late = bin_curves([short, np.array([[60, 1.0], [100, 2.0]])])
    assert late is not None
    assert late.x.tolist() == [75]
    assert bin_curves([short, np.array([[300, 1.0]])]) is None
    assert bin_curves([]) is None


def test_coverage_agrees_with_the_committed_numbers():
    """The committed numbers, again with fewer simulations."""
    kept = {row["n"]: row for row in json.loads(MEASURED.read_bytes())["coverage"]}
    config = statistics.StatisticsConfig(simulations=300, reps=200)
    for n in (3, 10):
        found = statistics.coverage(n, config, np.random.default_rng(n))
        for kind in statistics.KINDS:
            assert found[kind] == pytest.approx(kept[n][kind], abs=0.09)
    assert kept[3]["normal"] < 0.85 < 0.92 < kept[10]["normal"]


def test_few_seeds_have_a_note(tmp_path):
    note = coverage_note(3)
    share = next(row["normal"] for row in json.loads(MEASURED.read_bytes())["coverage"] if row["n"] == 3)
    assert note is not None
    assert f"{share:.0%}" in note
    assert coverage_note(30) is None
    assert coverage_note(3, tmp_path / "none.json") == "intervals of 3 runs are too narrow"


def test_true_values_of_the_simulated_studies():
    rng = np.random.default_rng(0)
    for kind in statistics.KINDS.values():
        drawn = np.sort(kind.draw(rng, (200_000, 1)).ravel())
        assert drawn[50_000:150_000].mean() == pytest.approx(kind.truth, abs=0.01)


def test_benchmark_of_statistics_writes_a_page(tmp_path, monkeypatch):
    monkeypatch.setattr(statistics, "SEEDS", (2, 3))
    call(statistics.main, "--output", tmp_path / "s.md", "--simulations", 3, "--reps", 4)
    result = json.loads((tmp_path / "s.json").read_bytes())
    assert [row["n"] for row in result["improvement"]] == [2, 3]
    assert result["command"] in (tmp_path / "s.md").read_text()
    assert result["machine"] in (tmp_path / "s.md").read_text()


def test_times_are_read_from_the_rows_that_have_them(tmp_path):
    run = read_run(write_run(tmp_path / "a"))
    assert run.seconds(np.array([100.0, 150.0])).tolist() == [10, 15]
    assert run.final("model/loss", 0.1) == pytest.approx(0.1)
    assert run.final("nothing", 0.1) is None


def test_table_as_html_markdown_and_csv():
    table = Table("t", "A | B", ("x", "y|z"), [["a<b", 1 / 3], ["c\nd", None], ["e", float("nan")]], ["note"])
    assert Page(table.html()).text == "A | B x y|z a<b 0.3333 c d — e — note"
    assert table.markdown().splitlines()[2:7] == [
        *("| x | y\\|z |", "|---|---|", "| a<b | 0.3333 |", "| c d | — |", "| e | — |"),
    ]
    assert list(csv.reader(io.StringIO(table.csv()))) == [["x", "y|z"], ["a<b", str(1 / 3)], ["c\nd", ""], ["e", ""]]


@pytest.mark.parametrize(
    ("text", "markdown"),
    [
        ("env/episode_return, n=3 (-1.5 to 2)", "env/episode_return, n=3 (-1.5 to 2)"),
        ("a|b\\|c", "a\\|b\\\\\\|c"),
        ("[a](javascript:b) ![c](d)", "\\[a\\](javascript:b) !\\[c\\](d)"),
        ("<img src=x onerror=y> a < b", "\\<img src=x onerror=y> a < b"),
        (
            "**b** _i_ __main__ `c` ~~d~~ $e$ &lt;",
            "\\*\\*b\\*\\* \\_i\\_ \\_\\_main\\_\\_ \\`c\\` \\~\\~d\\~\\~ \\$e\\$ \\&lt;",
        ),
        ("http://a.b www.c.d", "http\\://a.b www\\.c.d"),
        ("- a", "\\- a"),
        ("1. a\n# b", "1\\. a \\# b"),
        ("> a", "\\> a"),
        ("1.5 a", "1.5 a"),
    ],
)
def test_markdown_shows_text_literally(text, markdown):
    table = Table("t", text, (text,), [[text]], [text])
    title, _, columns, _, row, _, note, *_ = table.markdown().splitlines()
    assert (title, note) == (f"## {markdown}", f"* {markdown}")
    assert columns == row == f"| {markdown} |"
