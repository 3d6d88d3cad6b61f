import io
import os
import unicodedata

import pytest
from rich.console import Console

from layeredrl.loggers import ConsoleLogger, LoggerList, closing_table


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Terminal(io.StringIO):
    """A file that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def control_characters(text: str) -> set[str]:
    return {character for character in text if unicodedata.category(character) == "Cc"} - {"\n"}


def test_a_file_gets_plain_lines_now_and_then_and_at_the_end() -> None:
    clock, file = Clock(), io.StringIO()
    with ConsoleLogger(2000, console=Console(file=file), clock=clock) as logger:
        for n in range(1, 121):
            clock.now_s += 0.1
            logger.log({"env/episode_return": float(-n), "model/loss": 0.125}, 10 * n)
    lines = file.getvalue().splitlines()
    assert control_characters(file.getvalue()) == set()
    assert len(lines) == 4  # at 0.1, 5.1, 10.1 and, for the end, 12.0 seconds
    assert lines[-1] == (
        "1,200/2,000 env steps | 100 steps/s | return -120.00 (best -1.00) | model loss 0.125 "
        "| 0:00:12 elapsed | 0:00:08 left"
    )


def test_the_last_line_is_written_once() -> None:
    file = io.StringIO()
    logger = ConsoleLogger(10, console=Console(file=file), clock=Clock())
    logger.log({}, 10)
    logger.close()
    logger.close()
    assert file.getvalue() == "10/10 env steps | 0:00:00 elapsed\n"


def test_no_control_characters_in_a_file_even_when_colour_is_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    file = io.StringIO()
    with ConsoleLogger(10, console=Console(file=file)) as logger:
        logger.log({"env/episode_return": 1.0}, 5)
    assert "5/10 env steps" in file.getvalue()
    assert control_characters(file.getvalue()) == set()


def test_a_terminal_gets_a_live_display() -> None:
    file = Terminal()
    console = Console(file=file, width=120, _environ={"TERM": "xterm-256color"})
    with ConsoleLogger(100, console=console) as logger:
        for n in (10, 20, 30):
            logger.log({"env/episode_return": float(n)}, n)
        assert "\x1b[?25l" in file.getvalue()  # the cursor is hidden
    assert file.getvalue().rstrip().endswith("\x1b[?25h")  # and back
    assert "30/100 env steps" in file.getvalue()
    assert "return 30.00 (best 30.00)" in file.getvalue()


def test_speed_is_the_mean_of_the_last_minute() -> None:
    clock, file = Clock(), io.StringIO()
    logger = ConsoleLogger(100_000, console=Console(file=file), clock=clock, line_interval_s=0)
    n = 0
    for steps_per_s in (1000, 4):
        for _ in range(70):
            clock.now_s += 1
            n += steps_per_s
            logger.log({}, n)
    lines = file.getvalue().splitlines()
    assert "| 1,000 steps/s |" in lines[69]
    assert "| 4.0 steps/s |" in lines[-1]
    assert lines[-1].endswith("| 0:02:20 elapsed | 2:03:50 left")  # (100000 - 70280) / 4 s


def test_nan_returns_are_shown_but_never_best() -> None:
    file = io.StringIO()
    logger = ConsoleLogger(100, console=Console(file=file), clock=Clock(), line_interval_s=0)
    for n, value in enumerate((float("nan"), 2.0, float("nan"))):
        logger.log({"env/episode_return": value}, n)
    assert ["nan |" in file.getvalue(), "nan (best 2.00)" in file.getvalue()] == [True, True]


def test_a_resumed_run_keeps_its_best_return_and_its_time() -> None:
    clock, file = Clock(), io.StringIO()
    first = ConsoleLogger(1000, console=Console(file=io.StringIO()), clock=clock)
    clock.now_s += 100
    first.log({"env/episode_return": 7.0}, 500)
    second = ConsoleLogger(1000, console=Console(file=file), clock=clock)
    second.load_state_dict(first.state_dict())
    clock.now_s += 10
    second.log({"env/episode_return": 3.0}, 600)
    assert file.getvalue() == (
        "600/1,000 env steps | 10 steps/s | return 3.00 (best 7.00) | 0:01:50 elapsed | 0:00:40 left\n"
    )


def test_the_closing_table_is_complete() -> None:
    file = io.StringIO()
    rows = {"return": "-5.0", "widths": "[200, 200]", "folder": "/runs/" + "long/" * 40}
    closing_table(rows, title="Done", console=Console(file=file, width=60))
    text = file.getvalue()
    assert control_characters(text) == set()
    assert "Done" in text
    assert "[200, 200]" in text
    assert "".join(line.split("│")[2].strip() for line in text.splitlines() if "long/" in line) == rows["folder"]


def test_a_closed_pipe_is_an_error_of_the_logger_and_does_not_end_the_program() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", buffering=1) as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", file)  # rich points its descriptor to nowhere
        logger = LoggerList([ConsoleLogger(10, console=Console(file=file))])
        with pytest.warns(RuntimeWarning, match="ConsoleLogger failed and is switched off, training goes on"):
            logger.log({"a": 1.0}, 1)
        logger.log({"a": 2.0}, 2)  # without a second warning
        logger.close()
