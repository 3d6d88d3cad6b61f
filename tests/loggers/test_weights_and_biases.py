import http.server
import json
import os
import threading
import time
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import wandb
from PIL import Image

from layeredrl.loggers import CsvLogger, LoggerList, WandbLogger, WandbSettings
from tests.loggers.wandb_reader import (
    CHUNK_HEADER,
    FILE_HEADER,
    OfflineRun,
    history_ends,
    read_offline_run,
    read_part,
    records,
    wait_for_the_end,
)

OFFLINE = WandbSettings(mode="offline")
ONLINE = WandbSettings(mode="online")


@pytest.fixture(autouse=True)
def lonely_wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No key, no files of this machine's user, no network, and no state of the last test."""
    for name in ("API_KEY", "MODE", "DIR", "IDENTITY_TOKEN_FILE", "RUN_ID", "SWEEP_ID", "SWEEP_PARAM_PATH"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "home" / "config"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # the discard port: no server listens
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    wandb.teardown()
    yield
    wandb.teardown()


def metrics_of(run: OfflineRun) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if not key.startswith("_")} for row in run.rows]


def test_an_offline_run_holds_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = WandbSettings(mode="offline", project="p", group="g", job_type="j", name="my run/1", tags=("a", "b"))
    config = {"agent": {"horizon": 30, "widths": [200, 200]}, "seed": 1, "longer than a block": "x" * 100_000}
    figure, video, weights = Path("figure.png"), Path("video.gif"), Path("weights.pt")
    frames = [Image.new("RGB", (8, 6), color) for color in ("red", "green", "blue")]
    frames[0].save(figure)
    frames[0].save(video, save_all=True, append_images=frames[1:])
    pictures = {"eval/figure": figure.read_bytes(), "eval/video": video.read_bytes()}
    with WandbLogger(settings, config, Path("r")) as logger:
        assert logger.url is None
        logger.log({"env/episode_return": -1.5}, 100)
        logger.log({"env/episode_return": -0.5, "env/episode_length": 50}, 100)
        logger.log({"model/loss": 0.25}, 200)
        logger.log({}, 300)
        logger.log_figure("eval/figure", figure, 310)
        logger.log_video("eval/video", video, 320)
        for n in (10, 20):
            weights.write_bytes(b"%d" % n)
            logger.log_model({"checkpoints/weights.pt": weights}, n)
        for path in (figure, video, weights):
            path.unlink()
    assert capfd.readouterr() == ("", "")
    run = read_offline_run(Path("r"))
    assert (run.project, run.group, run.job_type, run.name, run.tags) == ("p", "g", "j", "my run/1", ("a", "b"))
    assert run.config == config
    assert run.step_metrics == {"n_total_env_steps": "", "*": "n_total_env_steps"}
    assert metrics_of(run)[:3] == [
        {"n_total_env_steps": 100, "env/episode_return": -1.5},
        {"n_total_env_steps": 100, "env/episode_return": -0.5, "env/episode_length": 50},
        {"n_total_env_steps": 200, "model/loss": 0.25},
    ]
    kinds: dict[str, str] = {}
    for row, n, (name, content) in zip(run.rows[3:], (310, 320), pictures.items(), strict=True):
        assert row["n_total_env_steps"] == n
        kinds[name] = row[name]["_type"]
        assert (run.files / row[name]["path"]).read_bytes() == content
    assert kinds == {"eval/figure": "image-file", "eval/video": "video-file"}
    for artifact, n in zip(run.artifacts, (10, 20), strict=True):
        assert (artifact.name, artifact.kind, artifact.aliases) == ("my-run-1", "model", {"latest", run.run_id})
        (path,) = artifact.files.values()
        assert path.is_relative_to(tmp_path / "r")
        assert (artifact.download(tmp_path / str(n)) / "checkpoints/weights.pt").read_bytes() == b"%d" % n


def test_a_record_may_begin_with_a_chunk_without_data() -> None:
    """If a block has room for a chunk's header alone, as in one run of some thousand."""
    first = b"a" * (32 * 1024 - len(FILE_HEADER) - 2 * CHUNK_HEADER.size)
    log = FILE_HEADER
    for kind, data in [(1, first), (2, b""), (4, b"b")]:
        log += CHUNK_HEADER.pack(zlib.crc32(bytes([kind]) + data), len(data), kind) + data
    assert list(records(log)) == [first, b"b"]


def test_a_resumed_run_continues_under_its_id(tmp_path: Path) -> None:
    first = WandbLogger(OFFLINE, {}, tmp_path / "first")
    first.log({"a": 1.0}, 10)
    first.log({"a": 2.0}, 20)
    state = first.state_dict()
    with pytest.raises(RuntimeError, match="restored before"):
        first.load_state_dict(state)
    first.log({"a": 3.0}, 30)  # after the checkpoint: repeated by the resumed run
    first.close()
    first.close()
    with pytest.raises(RuntimeError, match="closed"):
        first.log({"a": 1.0}, 40)
    second = WandbLogger(OFFLINE, {}, tmp_path / "second")
    assert second.state_dict()["run_id"] != state["run_id"]
    second.load_state_dict(state)
    second.log({"a": 3.0}, 30)
    second.close()
    before, after = read_offline_run(tmp_path / "first"), read_offline_run(tmp_path / "second")
    assert before.run_id == after.run_id == state["run_id"]
    assert [row["_step"] for row in before.rows] == [0, 1, 2]
    assert [(row["_step"], row["a"]) for row in after.rows] == [(2, 3.0)]


def _rows_by_step(directory: Path) -> dict[int, dict[str, Any]]:
    """History of all parts of a run by the numbers of the records; fails if two parts have the same number."""
    rows: dict[int, dict[str, Any]] = {}
    for path in sorted(directory.glob("wandb/offline-run-*/run-*.wandb")):
        for row in read_part(path).rows:
            assert row["_step"] not in rows
            rows[row["_step"]] = {key: value for key, value in row.items() if not key.startswith("_")}
    return rows


@pytest.mark.parametrize("n_lost", [0, 2, 7, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 4, 9))])
def test_records_that_a_killed_process_has_not_written_are_logged_again(n_lost: int, tmp_path: Path) -> None:
    """The file is cut between and within records; the process has logged seven up to its checkpoint, and two later."""
    picture, metrics = tmp_path / "p.png", tmp_path / "metrics.csv"
    Image.new("RGB", (8, 6)).save(picture)

    def log(loggers: LoggerList, numbers: range) -> None:
        for n in numbers:
            if n in (3, 6):
                loggers.log_figure("p", picture, 10 * n)
            else:
                loggers.log({"a": 0.1 * n, "b": float("nan")} if n % 2 else {"a": n, "x" * 20_000: n}, 10 * n)

    csv = CsvLogger(metrics)
    csv.log({"a": -1.0}, 0)  # while W&B was off
    with LoggerList([csv, WandbLogger(OFFLINE, {}, tmp_path, metrics)]) as first:
        log(first, range(7))
        state = json.loads(json.dumps(first.state_dict()))
        log(first, range(7, 9))
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    wait_for_the_end(file)
    ends = history_ends(file.read_bytes())
    assert len(ends) == 9
    os.truncate(file, ends[8 - n_lost] + 10 if n_lost < 9 else ends[0] - 10)  # and a part of the next
    wandb.teardown()
    time.sleep(1 - time.time() % 1)  # wandb names its folders by the second
    with LoggerList([CsvLogger(metrics), WandbLogger(OFFLINE, {}, tmp_path, metrics)]) as second:
        second.load_state_dict(state)
        second.log_figure("p", picture, 60)  # again, as at the end of a run that was killed after its last save
        log(second, range(7, 11))
    for path in tmp_path.glob("wandb/offline-run-*/run-*.wandb"):
        if path != file:
            wait_for_the_end(path)
    rows = _rows_by_step(tmp_path)
    assert list(rows) == list(range(11))
    for n, row in rows.items():
        assert row["n_total_env_steps"] == 10 * n
        if n in (3, 6):
            assert row["p"]["_type"] == "image-file"
        else:
            assert row["a"] == (0.1 * n if n % 2 else n)
            assert ("b" in row) == bool(n % 2)


def test_two_runs_in_one_process_do_not_mix(tmp_path: Path) -> None:
    """Their records are longer than a block of the file, of which the reader joins the parts."""
    with WandbLogger(OFFLINE, {}, tmp_path / "a") as a, WandbLogger(OFFLINE, {}, tmp_path / "b") as b:
        for n in range(150):
            a.log({"x": n, "x" * 500: n}, n)
            b.log({"y": n, "y" * 500: n}, n)
    assert [row["x"] for row in read_offline_run(tmp_path / "a").rows] == list(range(150))
    assert [row["y"] for row in read_offline_run(tmp_path / "b").rows] == list(range(150))


def test_mode_off_makes_no_logger(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="off"):
        WandbLogger(WandbSettings(), {}, tmp_path)


def log_online(directory: Path) -> list[str]:
    """The warnings of a short run that should be online."""
    with warnings.catch_warnings(record=True) as caught, WandbLogger(ONLINE, {}, directory) as logger:
        warnings.simplefilter("always")
        logger.log({"a": 1.0}, 1)
        logger.log({"a": 2.0}, 2)
    assert [row["a"] for row in read_offline_run(directory).rows] == [1.0, 2.0]
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    ("key", "reason"), [(None, "no API key"), ("0123456789" * 4, "AuthenticationError"), ("bad", "AuthenticationError")]
)
def test_online_without_a_login_goes_offline_and_asks_for_nothing(
    key: str | None, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def ask(*args: object, **kwargs: object) -> NoReturn:
        raise AssertionError("asked for a key")

    monkeypatch.setattr("builtins.input", ask)
    monkeypatch.setattr("wandb.sdk.lib.wbauth.prompt.prompt_and_save_api_key", ask)
    if key is not None:
        monkeypatch.setenv("WANDB_API_KEY", key)
        monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "1")
    (message,) = log_online(tmp_path)
    assert reason in message
    assert str(tmp_path) in message
    assert capfd.readouterr() == ("", "")


class Server(http.server.BaseHTTPRequestHandler):
    """Answers the login, and then no more."""

    n_answers = 0

    def do_POST(self) -> None:
        query = self.rfile.read(int(self.headers["content-length"])).decode()
        if "query Viewer" not in query or not self.n_answers:
            self.server.over.wait()  # type: ignore[attr-defined]
            return
        viewer = {"id": "x", "username": "u", "entity": "u", "flags": "{}", "teams": {"edges": []}}
        answer = json.dumps({"data": {"viewer": viewer}}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args: object) -> None:
        pass


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n_answers", "sweep"), [(0, False), (1, False), (1, True)], ids=["silent", "silent after the login", "in a sweep"]
)
def test_a_server_that_does_not_answer_costs_seconds(
    n_answers: int, sweep: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        server.over = threading.Event()  # type: ignore[attr-defined]
        monkeypatch.setattr(Server, "n_answers", n_answers)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
        if sweep:
            monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
            monkeypatch.setenv("WANDB_RUN_ID", "given")
        start_s = time.monotonic()
        try:
            (message,) = log_online(tmp_path)
        finally:
            server.over.set()  # type: ignore[attr-defined]
            server.shutdown()
    assert ("CommError" if n_answers else "AuthenticationError") in message
    assert time.monotonic() - start_s < 30  # wandb itself would wait for minutes


def test_online_that_fails_after_the_login_goes_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb, "login", lambda **kwargs: True)
    real_init = wandb.init
    online: dict[str, Any] = {}

    def init(**kwargs: Any) -> Any:
        if kwargs["mode"] == "offline":
            return real_init(**kwargs)
        online.update(kwargs)
        raise wandb.errors.CommError("no permission")

    monkeypatch.setattr(wandb, "init", init)
    (message,) = log_online(tmp_path)
    assert "CommError: no permission" in message
    assert online["resume"] == "allow"
    assert online["settings"].init_timeout <= 15
    assert read_offline_run(tmp_path).run_id != online["id"]  # the process cannot use that id again
