import json

import pytest

from experiments import compare
from experiments.report.comparison import results
from experiments.report.runs import read_run
from tests.experiments.commands import call
from tests.experiments.conftest import Refusal
from tests.experiments.run_folders import write_run


@pytest.fixture
def pair(tmp_path):
    """Two runs with different settings, seeds and results."""
    a = write_run(tmp_path / "a", settings={"width": 16, "deep": {"rate": 0.1}})
    b = write_run(tmp_path / "b", settings={"width": 32, "deep": {"rate": 0.1}}, seed=3, level=80, finished=False)
    return a, b


def _rows(text: str) -> dict[str, list[str]]:
    cells = [[cell.strip() for cell in line.strip("│┃ ").split("│")] for line in text.splitlines() if "│" in line]
    return {row[0]: row[1:] for row in cells}


def test_only_differences_are_printed(pair, capsys):
    call(compare.main, *pair)
    output = capsys.readouterr().out
    rows = _rows(output)
    assert rows["settings.width"] == ["16", "32"]
    assert rows["seed"] == ["0", "3"]
    assert "settings.deep.rate" not in output
    assert rows["environment steps"] == ["1000", "500", "-500"]
    assert rows["env/episode_return, mean of the last tenth"] == ["100", "80.003", "-19.997"]
    assert rows["wall time, seconds"] == ["100", "50", "-50"]
    assert "Code: not recorded by these runs" in output
    assert "not finished: 500 of 1000 environment steps" in output


def test_the_same_run_twice(trained, capsys):
    call(compare.main, trained, trained)
    output = capsys.readouterr().out
    assert "Settings: the same" in output
    assert _rows(output)["environment steps"] == ["60", "60", "+0"]


def test_code_versions_where_runs_have_them(pair, capsys):
    a, b = pair
    (a / "code.json").write_text(json.dumps({"layeredrl": "0.1", "commit": "aa"}))
    (b / "code.json").write_text(json.dumps({"layeredrl": "0.1", "commit": "[bold]bb"}))
    call(compare.main, a, b)
    rows = _rows(capsys.readouterr().out)
    assert rows["commit"] == ["aa", "[bold]bb"]
    assert "layeredrl" not in rows


def test_other_metrics(pair):
    found = results(read_run(pair[0]), "model/loss")
    assert found["model/loss, last"] == pytest.approx(0.1)
    assert found["model/loss, entries"] == 10
    assert found["eval/success, mean of the last tenth"] is None


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("a", "nowhere"), "nowhere is no folder"),
        (("a", "."), ". holds 2 runs"),
        (("a", "b", "--metric", "x"), "no run has a metric 'x' (there are env/episode_return, ...)"),
        (("a", "b", "--metric", "eval/return"), "did you mean env/episode_return?"),
        (("a",), "required"),
    ],
)
def test_bad_input_gets_one_line(pair, refusal: Refusal, args, message):
    assert message in refusal(call, compare.main, *args)
