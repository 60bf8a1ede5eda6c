"""What happens at 2.0 s is shown at 2.0 s, in the display's shape."""

from contextlib import closing
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from conftest import ROOT
from demo_process import FAST, run_demo
from live_helpers import ffmpeg, film, images_of, numbered_video, numbers_of, numbers_shown

from media import videos
from media.drawing import as_displayed
from media.film import open_film
from media.sources import open_source
from nanodet import Detections

H264 = ("-c:v", "libx264", "-qp", "8", "-pix_fmt", "yuv420p")


def varying(path, times, rate=100):
    """A video whose n-th frame, which carries n, is shown at the n-th of these seconds."""
    terms = "+".join(f"eq(N,{i})*{seconds}" for i, seconds in enumerate(times))
    rule = f"setpts='round(({terms})/TB)'"
    options = ("-vf", rule, "-vsync", "passthrough", "-enc_time_base", f"1:{rate}", *H264)
    return numbered_video(path, len(times), *options, rate=rate)


def written_again(path):
    """The frames of a video, written as they are; returns the path of the result."""
    result = path.with_name("result.mp4")
    with open_source(str(path)) as source, closing(open_film(str(result), source)) as made:
        for frame in source:
            made.write(frame, SimpleNamespace(drawn=frame.image))
    return result


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_variable_frame_rate_is_saved_at_its_pace(tmp_path, ending):
    times = [i / 10 for i in range(20)] + [2 + i / 2 for i in range(8)]
    varying(tmp_path / f"in.{ending}", times)
    demo = run_demo("-i", f"in.{ending}", *FAST, "--json", "-", cwd=tmp_path)
    assert demo.returncode == 0
    assert [record["time"] for record in demo.records()] == pytest.approx(times, abs=1e-3)
    expected = [*range(20)] + [20 + i // 5 for i in range(36)]
    assert numbers_shown(tmp_path / "result.mp4", 10) == expected


def test_frames_closer_than_the_usual_are_left_out(tmp_path):
    times = [i / 10 for i in range(20)]
    times[7] = 0.62  # beside the one at 0.6
    shown = numbers_shown(written_again(varying(tmp_path / "in.mp4", times)), 10)
    assert shown == [0, 1, 2, 3, 4, 5, 6, shown[7], *range(8, 20)]
    assert shown[7] in (6, 7)


@pytest.mark.parametrize("rate", ["30000/1001", "24", "60"])
@pytest.mark.parametrize("ending, codec", [("mkv", H264), ("flv", ("-c:v", "flv", "-q:v", "2"))])
def test_even_frame_rate_stored_in_milliseconds_stays_as_it_is(tmp_path, ending, codec, rate):
    path = numbered_video(tmp_path / f"in.{ending}", 150, *codec, rate=rate)
    with open_source(str(path)) as source:
        assert source.even_rate() == pytest.approx(source.fps)
    result = written_again(path)
    assert numbers_of(result) == list(range(150))
    over, under = map(int, (rate + "/1").split("/")[:2])
    assert film(result)["rate"] == pytest.approx(over / under, rel=1e-3)


def test_rate_that_changes_later_than_was_looked_keeps_the_pace(tmp_path, monkeypatch):
    monkeypatch.setattr(videos, "PACKETS", 40)
    times = [i / 10 for i in range(60)] + [6 + i / 5 for i in range(10)]
    shown = numbers_shown(written_again(varying(tmp_path / "in.mp4", times)), 10)
    assert shown[:78] == [*range(60)] + [60 + i // 2 for i in range(18)]


@pytest.mark.parametrize("aspect, shown", [("4/3", (320, 180)), ("3/4", (240, 240))])
def test_result_has_the_display_s_shape_and_json_the_stored_one(tmp_path, aspect, shown):
    numbered_video(tmp_path / "in.mp4", 5, "-vf", f"setsar={aspect}", *H264, size=(240, 180))
    demo = run_demo("-i", "in.mp4", *FAST, "--json", "-", cwd=tmp_path)
    assert demo.returncode == 0
    assert film(tmp_path / "result.mp4")["size"] == shown
    assert {(r["width"], r["height"]) for r in demo.records()} == {(240, 180)}
    assert numbers_of(tmp_path / "result.mp4") == list(range(5))


def test_turned_video_of_non_square_pixels_is_upright_in_the_display_s_shape(tmp_path):
    numbered_video(tmp_path / "lying.mp4", 3, "-vf", "setsar=4/3", *H264, size=(240, 180))
    turn = ("-metadata:s:v", "rotate=90")
    ffmpeg("-i", tmp_path / "lying.mp4", "-c", "copy", *turn, tmp_path / "in.mp4")
    demo = run_demo("-i", "in.mp4", *FAST, "--json", "-", cwd=tmp_path)
    assert {(r["width"], r["height"]) for r in demo.records()} == {(180, 240)}
    assert film(tmp_path / "result.mp4")["size"] == (180, 320)


def test_boxes_are_drawn_where_the_objects_are_displayed(tmp_path):
    picture = ROOT / "example_inputs" / "street.jpg"  # 768x576, stored at half its width
    options = ("-vf", "scale=384:576,setsar=2", "-c:v", "mpeg4", "-q:v", "2", tmp_path / "in.mp4")
    ffmpeg("-loop", 1, "-i", picture, "-frames:v", 2, "-r", 10, *options)
    demo = run_demo("-i", "in.mp4", "--json", "-", cwd=tmp_path)
    assert demo.returncode == 0
    given, got = cv2.imread(str(picture)), images_of(tmp_path / "result.mp4")[0]
    assert got.shape == given.shape
    changed = cv2.absdiff(given, got).max(axis=2) > 60
    found = demo.records()[0]["detections"]
    assert len(found) > 3
    for each in found[:3]:
        left, top, right, bottom = (max(0, round(value)) for value in each["xyxy"])
        assert right <= 384
        assert changed[top:bottom, 2 * left : 2 * left + 3].any(axis=1).mean() > 0.5


def test_image_and_boxes_are_stretched_alike():
    boxes = np.float32([[10, 20, 30, 40]])
    found = Detections(boxes, np.float32([0.5]), np.int64([1]))
    for aspect, shape, box in ((2, (100, 400, 3), (20, 20, 60, 40)),
                               (0.5, (200, 200, 3), (10, 40, 30, 80))):  # fmt: skip
        image, stretched = as_displayed(np.zeros((100, 200, 3), np.uint8), found, aspect)
        assert image.shape == shape
        assert stretched.xyxy.tolist() == [list(box)]
        assert stretched.class_id.tolist() == [1]
