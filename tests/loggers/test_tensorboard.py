import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageSequence
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from layeredrl.loggers import LoggerList, TensorBoardLogger

CONFIG = {"agent": {"horizon": 30}, "seed": 1}


def read(directory: Path) -> EventAccumulator:
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    events.Reload()
    return events


def scalars(events: Any, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_scalars_and_config(tmp_path: Path) -> None:
    with TensorBoardLogger(CONFIG, tmp_path) as logger:
        logger.log({"env/episode_return": -1.5}, 100)
        logger.log({"env/episode_return": -0.5, "env/episode_length": 50}, 100)
        logger.log({"model/loss": 0.25}, 200)
        logger.log({}, 300)
    events = read(tmp_path)
    assert scalars(events, "env/episode_return") == [(100, -1.5), (100, -0.5)]
    assert scalars(events, "env/episode_length") == [(100, 50.0)]
    assert scalars(events, "model/loss") == [(200, 0.25)]
    (text,) = events.Tensors("config/text_summary")
    markdown = text.tensor_proto.string_val[0].decode()
    assert json.loads(markdown.removeprefix("```json\n").removesuffix("\n```")) == CONFIG


def test_figures_and_videos_are_stored_unchanged(tmp_path: Path) -> None:
    figure, video = tmp_path / "figure.png", tmp_path / "video.gif"
    frames = [Image.new("RGB", (8, 6), color) for color in ("red", "green", "blue")]
    Image.new("RGBA", (8, 6)).save(figure)
    frames[0].save(video, save_all=True, append_images=frames[1:])
    with TensorBoardLogger(CONFIG, tmp_path / "events") as logger:
        logger.log_figure("eval/figure", figure, 10)
        logger.log_video("eval/video", video, 20)
    events = read(tmp_path / "events")
    (image,) = events.Images("eval/figure")
    assert (image.step, image.width, image.height) == (10, 8, 6)
    assert image.encoded_image_string == figure.read_bytes()
    (image,) = events.Images("eval/video")
    assert (image.step, image.width, image.height) == (20, 8, 6)
    with Image.open(io.BytesIO(image.encoded_image_string)) as animation:
        assert animation.format == "GIF"
        assert len(ImageSequence.all_frames(animation)) == 3


def test_a_resumed_run_shows_the_log_of_an_uninterrupted_run(tmp_path: Path) -> None:
    first = TensorBoardLogger(CONFIG, tmp_path)
    first.log({"a": 1.0}, 10)
    first.log({"a": 2.0}, 20)
    first.log({"a": 2.5}, 20)
    state = json.loads(json.dumps(first.state_dict()))
    assert scalars(read(tmp_path), "a") == [(10, 1.0), (20, 2.0), (20, 2.5)]  # on the disk by now
    first.log({"a": 3.0, "b": 3.0}, 30)
    first.close()

    with TensorBoardLogger(CONFIG, tmp_path) as second:
        second.load_state_dict(state)
        second.log({"a": 4.0}, 30)
    events = read(tmp_path)
    assert scalars(events, "a") == [(10, 1.0), (20, 2.0), (20, 2.5), (30, 4.0)]
    assert scalars(events, "b") == []
    assert len(events.Tensors("config/text_summary")) == 1


def test_a_logger_that_is_off_for_a_while_keeps_its_log(tmp_path: Path) -> None:
    state: dict[str, Any] = {}
    for n, is_on in enumerate([True, False, True]):
        loggers = LoggerList([TensorBoardLogger(CONFIG, tmp_path)] if is_on else [])
        loggers.load_state_dict(state)
        loggers.log({"a": float(n)}, 10 * n)
        state = json.loads(json.dumps(loggers.state_dict()))
        loggers.close()
    assert scalars(read(tmp_path), "a") == [(0, 0.0), (20, 2.0)]


def test_a_new_run_hides_the_old_log(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        with TensorBoardLogger(CONFIG, tmp_path) as logger:
            logger.log({"a": value}, 10)
            with pytest.raises(RuntimeError, match="restored before"):
                logger.load_state_dict(logger.state_dict())
        logger.close()
        with pytest.raises(RuntimeError, match="closed"):
            logger.log({"a": 1.0}, 20)
    assert scalars(read(tmp_path), "a") == [(10, 2.0)]


def test_nothing_is_written_before_the_first_record(tmp_path: Path) -> None:
    with TensorBoardLogger(CONFIG, tmp_path / "events") as logger:
        logger.log({}, 0)
        logger.state_dict()
    assert not (tmp_path / "events").exists()


@pytest.mark.parametrize("n_cut", [0, 3])
def test_pictures_of_the_last_step_are_not_recorded_again(n_cut: int, tmp_path: Path) -> None:
    picture, folder = tmp_path / "p.png", tmp_path / "events"
    Image.new("RGB", (8, 6)).save(picture)

    def part(number: int, state: Mapping[str, Any] | None, *pictures: tuple[str, int]) -> Path:
        logger = TensorBoardLogger(CONFIG, folder)
        if state is None:
            logger.log({"a": 1.0}, 10)
        else:
            logger.load_state_dict(state)
        for name, n in pictures:
            logger.log_figure(name, picture, n)
        logger.close()
        (file,) = folder.glob("events.out.tfevents.*[!0-9]*")  # in order also within a second
        return file.rename(folder / f"events.out.tfevents.{number:010d}")

    first = part(0, None, ("p", 10), ("q", 10))
    os.truncate(first, first.stat().st_size - n_cut)  # the process was killed while it wrote
    at_10, at_20 = {"n_total_env_steps": 10}, {"n_total_env_steps": 20}
    part(1, at_10, ("r", 20))  # killed before it saved
    part(2, at_10, ("p", 10), ("q", 10), ("p", 20))
    part(3, at_20, ("p", 20), ("r", 20))
    events = read(folder)
    assert {name: [event.step for event in events.Images(name)] for name in "pqr"} == {
        "p": [10, 20],
        "q": [10],
        "r": [20],
    }
