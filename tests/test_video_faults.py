"""Damaged, cut and cut off videos: what is lost is named, the rest is done."""

import re
import struct
import time

import cv2
import numpy as np
import pytest
from demo_process import FAST, run_demo
from live_helpers import ffmpeg, number_of, numbered_video, numbers_shown
from source_helpers import indices, read, times

from media import containers
from media.frames import SourceError
from media.sources import Reading, open_source

CODECS = {
    "mjpeg": ("-c:v", "mjpeg", "-q:v", "2", "-pix_fmt", "yuvj420p"),
    "mpeg4": ("-c:v", "mpeg4", "-q:v", "2", "-g", "1", "-pix_fmt", "yuv420p"),
    # Decoded in another order than shown, so a failure shows some frames before its place.
    "h264": ("-c:v", "libx264", "-qp", "8", "-g", "12", "-pix_fmt", "yuv420p"),
}


def damaged(path, codec, which, frames=30):
    """A numbered video, the data of some packets (an expression of n) replaced by noise."""
    whole = numbered_video(path.with_stem("whole"), frames, *CODECS[codec], size=(320, 240))
    ffmpeg("-i", whole, "-c", "copy", "-bsf:v", f"noise=amount='{which}'", path)
    whole.unlink()
    return path


@pytest.mark.parametrize(
    "codec, ending, frame",
    [
        ("mjpeg", "avi", 0),
        ("mjpeg", "mkv", 20),
        ("mjpeg", "avi", 29),
        ("mpeg4", "mp4", 0),
        ("mpeg4", "avi", 20),
        ("mpeg4", "mkv", 29),
        ("h264", "mp4", 20),
        ("h264", "mkv", 20),
        ("h264", "mp4", 29),
        ("h264", "ts", 29),
    ],
)
def test_damaged_frame_is_named_and_the_others_are_read(tmp_path, codec, ending, frame):
    path = damaged(tmp_path / f"clip.{ending}", codec, f"eq(n,{frame})")
    frames, told, fault = read(path)
    assert [each.index for each in frames] == list(range(30))
    assert [each.error for each in frames if each.error] == [
        f"{path}, frame {frame}: can't be decoded"
    ]
    assert indices(frames, good=False) == [frame]
    assert [number_of(each.image) for each in frames if not each.error] == indices(frames)
    assert times(frames) == pytest.approx([i / 10 for i in range(30)])
    assert told == []
    assert fault == f"{path}: 1 of 30 frames can't be read"


@pytest.mark.parametrize(
    "codec, ending, frame", [("mjpeg", "avi", 0), ("h264", "mp4", 20), ("h264", "ts", 29)]
)
def test_damaged_frame_costs_the_result_neither_pace_nor_other_frames(
    tmp_path, codec, ending, frame
):
    name = damaged(tmp_path / f"clip.{ending}", codec, f"eq(n,{frame})").name
    demo = run_demo("-i", name, *FAST, "--json", "-", cwd=tmp_path)
    assert demo.returncode == 1
    error = f"{name}, frame {frame}: can't be decoded"
    assert [line for line in demo.err if line.startswith("demo.py: ")] == [
        f"demo.py: {error}\n",
        f"demo.py: error: {name}: 1 of 30 frames can't be read\n",
    ]
    assert demo.records()[frame] == {"source": name, "frame": frame, "error": error}
    # The frame before is shown longer, at the start the one after.
    shown = [i if i != frame else max(i - 1, int(i == 0)) for i in range(30)]
    assert numbers_shown(tmp_path / "result.mp4", 10) == shown


def test_many_damaged_frames_in_a_row_do_not_end_the_video(tmp_path):
    path = damaged(tmp_path / "clip.avi", "mjpeg", "between(n,10,49)", frames=60)
    frames, _, fault = read(path)
    assert indices(frames) == [*range(10), *range(50, 60)]
    assert fault == f"{path}: 40 of 60 frames can't be read"


def test_damaged_key_frame_takes_only_the_frames_that_need_it(tmp_path):
    path = damaged(tmp_path / "clip.mkv", "h264", "eq(n,0)")
    frames, told, _ = read(path)
    assert [frame.index for frame in frames] == list(range(30))
    good = [frame.image is not None for frame in frames]
    assert good == sorted(good) and not good[0] and all(good[12:])
    assert told == []


def test_frame_of_a_transport_stream_lost_without_a_trace_keeps_the_pace(tmp_path):
    # The reader of the stream drops what is no picture; OpenCV reports nothing.
    path = damaged(tmp_path / "clip.ts", "mpeg4", "eq(n,20)")
    frames, told, fault = read(path)
    assert (indices(frames), told, fault) == (list(range(29)), [], "")
    assert times(frames) == pytest.approx([i / 10 for i in range(30) if i != 20])


def hide_beginning(folder):
    whole = numbered_video(folder / "whole.mp4", 60, *CODECS["h264"])
    ffmpeg("-ss", "1.37", "-i", whole, "-c", "copy", folder / "clip.mp4")
    return 51, list(range(60))[-46:]  # from the key frame before


def hide_end(folder):
    data = bytearray(numbered_video(folder / "clip.mp4", 60, *CODECS["mpeg4"]).read_bytes())
    duration = data.index(b"elst") + 12  # ISO/IEC 14496-12, 8.6.6, in milliseconds
    data[duration : duration + 4] = struct.pack(">I", 4000)
    (folder / "clip.mp4").write_bytes(data)
    return 60, list(range(40))


def damage_last(folder):
    damaged(folder / "clip.mp4", "mjpeg", "eq(n,59)", frames=60)
    return 60, list(range(59))


@pytest.mark.parametrize("make", [hide_beginning, hide_end, damage_last])
def test_frames_missing_from_a_whole_mp4_are_a_warning(tmp_path, make):
    # An edit list hides them, or the last one is damaged: OpenCV does not tell which.
    stored, shown = make(tmp_path)
    frames, told, fault = read(tmp_path / "clip.mp4")
    assert told == [
        f"{tmp_path / 'clip.mp4'}: {len(shown)} of {stored} frames are shown; "
        "the others were cut away, or are damaged"
    ]
    assert [number_of(frame.image) for frame in frames] == shown
    assert fault == ""


@pytest.mark.parametrize("ending, part", [("mp4", 0.97), ("mp4", 0.6), ("avi", 0.6), ("mkv", 0.6)])
def test_video_cut_off_is_an_error_however_little_an_mp4_lacks(tmp_path, ending, part):
    option = ("-movflags", "faststart") if ending == "mp4" else ()
    path = numbered_video(tmp_path / f"clip.{ending}", 60, *CODECS["mjpeg"], *option)
    data = path.read_bytes()
    path.write_bytes(data[: round(len(data) * part)])
    frames, told, fault = read(path)
    assert part * 60 - 9 < len(frames) < 60
    assert told == []
    assert fault == f"{path}: ends at frame {len(frames)} of 60; is it cut off?"


def test_matroska_of_varying_frame_rate_is_not_taken_for_cut_off(tmp_path):
    rule = "select='lt(n,30)+not(mod(n,10))'"
    options = ("-vf", rule, "-vsync", "vfr", *CODECS["h264"])
    path = numbered_video(tmp_path / "clip.mkv", 90, *options, rate=30)
    frames, told, fault = read(path)
    assert (len(frames), told, fault) == (36, [], "")


@pytest.mark.parametrize("name, codec", [("clip.264", "h264"), ("clip.mjpeg", "mjpeg")])
def test_time_rises_where_a_file_stores_none(name, codec, tmp_path):
    path = numbered_video(tmp_path / name, 20, *CODECS[codec])
    rate = cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FPS)
    assert times(read(path)[0]) == pytest.approx([i / rate for i in range(20)], abs=0.002)


# Made-up videos, since real ones are damaged in so few ways.


@pytest.fixture
def made(monkeypatch, tmp_path):
    """Put made-up videos in place of OpenCV's.

    Gets a text, "+" for a frame, "!" for one that can't be grabbed, "?" for one that can't be
    decoded, "x" and "X" where that raises; the seconds of those grabbed and of all packets, None
    for one that can't be read; what the file begins with, or an address; and values of
    properties. Returns what `open_source` takes.
    """

    def make(text, seconds=None, packets=(), head=b"RIFF\0\0\0\0AVI ", address=None, **gives):
        gives = {f"CAP_PROP_{name}": value for name, value in gives.items()}
        seconds = [i / 10 for i in range(len(text))] if seconds is None else seconds

        class Capture:
            def __init__(self, name, _, options):
                raw = options == [cv2.CAP_PROP_FORMAT, -1]
                self._marks = iter(["!+"[i is not None] for i in packets] if raw else text)
                self._seconds = (i for i in (packets if raw else seconds) if i is not None)
                self._now = None

            def isOpened(self):
                return True

            def get(self, wanted):
                if wanted == cv2.CAP_PROP_POS_MSEC:
                    return self._now * 1000
                values = {"CAP_PROP_FPS": 10.0} | gives
                return next((v for name, v in values.items() if getattr(cv2, name) == wanted), 0.0)

            def grab(self):
                self._mark = next(self._marks, "!")
                if self._mark == "x":
                    raise cv2.error("broken")
                if self._mark != "!":
                    self._now = next(self._seconds)
                return self._mark != "!"

            def retrieve(self):
                if self._mark == "X":
                    raise cv2.error("broken")
                return (True, IMAGE) if self._mark == "+" else (False, None)

            def release(self):
                pass

        monkeypatch.setattr(cv2, "VideoCapture", Capture)
        (tmp_path / "clip").write_bytes(head)
        return address or str(tmp_path / "clip")

    return make


IMAGE = np.zeros((48, 64, 3), np.uint8)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ([0.5, 0.6, 0.7], [0.5, 0.6, 0.7]),
        ([599, 599.1], [599, 599.1]),
        ([601, 601.1, 601.3], [0, 0.1, 0.3]),  # a file without times, on OpenCV 4
        ([-601, -600.9], [0, 0.1]),
        ([0, 0.1, 5000, 5000.2], [0, 0.1, 0.2, 0.4]),  # the clock jumps ahead, back, or stands
        ([7, 7.1, 0, 0.2], [7, 7.1, 7.2, 7.4]),
        ([0, 0, 0, 0.3], [0, 0.1, 0.2, 0.5]),
        ([0, 599, 1198], [0, 599, 1198]),  # or nothing was to be seen for long
    ],
)
def test_time_rises_whatever_the_clock_of_a_file_does(made, seconds, expected):
    frames, told, fault = read(made("+" * len(seconds), seconds))
    assert times(frames) == pytest.approx(expected)
    assert (indices(frames), told, fault) == (list(range(len(seconds))), [], "")


MATROSKA = b"\x1aE\xdf\xa3"
MP4 = b"\0\0\0\x10ftypisom\0\0\0\0"


@pytest.mark.parametrize("head", [MATROSKA, MP4])
def test_hours_between_frames_are_right_where_a_file_states_its_times(made, head):
    seconds = [0, 900, 1800, 88_199]
    assert times(read(made("++++", seconds, head=head))[0]) == seconds
    assert times(read(made("++", [0, 86_400], head=head))[0]) == pytest.approx([0, 0.1])


def test_still_screen_keeps_its_time_and_its_frames_beside_much_sound(tmp_path):
    still = "setpts='if(lt(N,10),N,7000+N)*0.1/TB'"
    sound = ("-f", "lavfi", "-i", "sine=d=702:r=8000")
    ffmpeg("-f", "lavfi", "-i", "testsrc=s=64x48:r=10:d=2", *sound, "-vf", still, "-vsync", "vfr",
           "-c:a", "pcm_s16le", "-packet_size", 64, tmp_path / "clip.mov")  # fmt: skip
    frames, told, fault = read(tmp_path / "clip.mov")
    assert times(frames) == pytest.approx([i / 10 for i in (*range(10), *range(7010, 7020))])
    assert (indices(frames), told, fault) == (list(range(20)), [], "")


def test_frames_lost_where_the_clock_stands_take_their_time(made):
    frames, _, _ = read(made("+!!+", [0, 0]))
    assert times(frames) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert indices(frames) == [0, 3]


@pytest.mark.parametrize(
    ("text", "seconds", "packets", "lost"),
    [
        ("+!+", [0, 0.2], [], [1]),  # by what failed
        ("!!+", [0.2], [], [0, 1]),
        ("+!+", [0, 0.2], [0, 0.1, 0.2], [1]),  # by the times of the packets
        ("+!+", [0, 0.3], [0, 0.1, 0.2, 0.3], [1, 2]),
        ("!+", [0.3], [0, 0.1, 0.2, 0.3], [0, 1, 2]),
        ("++!++", [0, 0.1, 0.2, 0.4], [0.4, 0.3, 0.2, 0.1, 0], [3]),  # named before its place
        ("++!++", [0, 0.1, 0.3, 0.4], [0, 0.1, None, 0.3, 0.4], [2]),  # where a packet is lost, too
        ("++!!++", [0, 0.1, 0.4, 0.5], [0, 0.1, None, None, 0.4, 0.5], [2, 3]),
        ("!++", [0.1, 0.2], [None, 0.1, 0.2], [0]),
        ("+!+", [0, 0.2], [5, 6, 7], [1]),  # which are not those of the frames
        ("+!+", [0, 0.2], [0, 0.1, 0.9], [1]),
        ("+!+?+", [0, 0.2, 0.3, 0.4], [0, 0.1, 0.2, 0.3, 0.4], [1, 3]),
    ],
)
def test_lost_frames_are_counted_where_they_were(made, text, seconds, packets, lost):
    frames, told, fault = read(made(text, seconds, packets))
    assert [frame.index for frame in frames] == list(range(len(frames)))
    assert indices(frames, good=False) == lost
    assert times(frames) == pytest.approx([i / 10 for i in range(len(frames))])
    assert told == []
    assert fault.endswith(f": {len(lost)} of {len(frames)} frames can't be read")


def test_lost_packet_before_the_only_other_one_is_no_frame(made):
    frames, told, fault = read(made("!+", [0.1], [None, 0.1]))
    assert (indices(frames), told, fault) == ([0], [], "")


@pytest.mark.parametrize("address, limit", [(None, 250), ("rtsp://127.0.0.1/s", 3)])
def test_so_many_failures_in_a_row_are_the_end(made, address, limit):
    goes_on = made("+" + "!" * (limit - 1) + "+", [0, limit / 10], address=address, FRAME_COUNT=9.0)
    assert indices(read(goes_on)[0]) == [0, limit]
    ends = made("+" + "!" * limit + "+", [0, limit / 10], address=address, FRAME_COUNT=9.0)
    assert indices(read(ends)[0]) == [0]


@pytest.mark.parametrize("text", ["++!+x", "++!+X"])
def test_error_of_opencv_names_the_frame(made, text):
    path = made(text, [0, 0.1, 0.3, 0.4])
    frames = iter(open_source(path))
    assert [next(frames).index for _ in range(4)] == [0, 1, 2, 3]
    shown = re.escape(str(path))
    with pytest.raises(SourceError, match=f"^{shown}, frame 4: can't be read: broken.$"):
        next(frames)


def boxes(*sizes, head=MP4, data=b""):
    """An MP4 with boxes that count so many bytes; `data` lies in the last."""
    return head + b"".join(struct.pack(">I", size) + b"mdat" for size in sizes) + data


@pytest.mark.parametrize(
    ("head", "cut_off"),
    [
        (boxes(8, 12, data=bytes(4)), False),
        (boxes(8, 12, data=bytes(3)), True),
        (boxes(0, data=bytes(99)), False),  # up to the end
        (boxes(1, data=struct.pack(">Q", 20) + bytes(4)), False),  # 64 bits of length
        (boxes(1, data=struct.pack(">Q", 1 << 40) + bytes(4)), True),
        (boxes(2, 8), False),  # less than itself
        (boxes(9, head=b"\0\0\0\x08moov"), True),
        (boxes(9, head=b"\0\0\0\x08wide"), True),
        (boxes(9, head=b"\0\0\0\x08free"), True),
        (boxes(9, head=b"\0\0\0\x08skip"), True),
        (boxes(16), True),
    ],
)
def test_mp4_is_cut_off_where_it_lacks_bytes_that_its_boxes_count(made, head, cut_off):
    frames, told, fault = read(made("++", head=head, FRAME_COUNT=3.0))
    assert len(frames) == 2
    assert ("ends at frame 2 of 3; is it cut off?" in fault) == cut_off
    assert ["2 of 3 frames are shown" in line for line in told] == [True] * (not cut_off)


def matroska(size, *before):
    """The beginning of a Matroska file whose segment has this size, eight bytes of it written."""
    head = b"\x1aE\xdf\xa3\x84" + bytes(4) + b"".join(before)
    return head + b"\x18S\x80g\x01" + size.to_bytes(7, "big") + bytes(8)


def avi(*sizes):
    """Chunks of AVI that count so many bytes; each has four."""
    return b"".join(b"RIFF" + struct.pack("<I", size) + b"AVI " for size in sizes)


def asf(size):
    """The beginning of a WMV that counts so many bytes."""
    guids = "3026b2758e66cf11a6d900aa0062ce6c", "a1dcab8c47a9cf118ee400c00c205365"
    header, properties = map(bytes.fromhex, guids)
    return header + bytes(14) + properties + bytes(24) + struct.pack("<Q", size) + bytes(8)


FLV = b"FLV\1\5\0\0\0\x09\0\0\0\0\x09\0\0\4" + bytes(11) + b"\0\0\0\x0f"


@pytest.mark.parametrize(
    ("head", "cut_off"),
    [
        (matroska(8), False),
        (matroska(9), True),
        (matroska(9, b"\xec\x81\0"), True),  # after an empty element
        (matroska(2**56 - 1), False),  # of unknown size: it was sent live
        (b"\x1aE\xdf\xa3" + bytes(40), False),
        (avi(4), False),
        (avi(5), True),
        (avi(4, 4), False),
        (avi(4, 400), True),
        (avi(4) + b"padding" * 9, False),
        (avi(0), False),
        (avi(0xFFFFFFFF), False),
        (asf(86), False),
        (asf(87), True),
        (asf(0), False),
        (FLV, False),
        (FLV[:-1], True),
        (b"FLV\1", True),
        (b"\x47" * 188, False),  # a transport stream counts nothing
    ],
)
def test_other_video_is_cut_off_where_it_lacks_bytes_that_it_counts(made, head, cut_off):
    # That it has fewer frames than its duration says may be due to longer sound.
    path = made("+" * 5, head=head, FRAME_COUNT=10.0)
    frames, told, fault = read(path)
    assert (len(frames), told) == (5, [])
    assert fault == (f"{path}: ends at frame 5 of 10; is it cut off?" if cut_off else "")


@pytest.mark.parametrize(("good", "cut_off"), [(9, False), (8, True)])
def test_recording_behind_an_address_is_cut_off_where_a_tenth_is_missing(made, good, cut_off):
    address = "rtsp://127.0.0.1/s"
    fault = read(made("+" * good, address=address, FRAME_COUNT=10.0))[2]
    assert fault == (f"{address}: ends at frame {good} of 10; is it cut off?" if cut_off else "")


@pytest.mark.parametrize("name", ["clip.mkv", "clip.webm", "clip.flv", "clip.ts", "clip.mp4"])
def test_sound_longer_than_the_pictures_is_no_fault(tmp_path, name):
    codec = ("-c:v", "libvpx", "-c:a", "libopus") if name == "clip.webm" else ("-c:a", "aac")
    ffmpeg("-f", "lavfi", "-i", "testsrc=s=64x48:r=10:d=2", "-f", "lavfi", "-i", "sine=d=4",
           *codec, tmp_path / name)  # fmt: skip
    frames, told, fault = read(tmp_path / name)
    assert (indices(frames), told, fault) == (list(range(20)), [], "")


@pytest.mark.parametrize(("text", "head"), [("+!++", MP4), ("+++", avi(0)), ("+++", MATROSKA)])
def test_lost_end_is_as_long_as_what_failed_or_what_packets_tell(made, text, head):
    path = made(text, [0, 0.1, 0.2], [0, 0.1, 0.2, 0.3], head, FRAME_COUNT=4.0)
    frames, told, fault = read(path)
    assert indices(frames, good=False) == [3]
    assert frames[3].time == pytest.approx(0.3)
    assert (told, fault) == ([], f"{path}: 1 of 4 frames can't be read")


def test_length_that_is_none_is_not_known(made):
    for count, fps, length in [
        (7.0, 10.0, 7),
        (0.0, 10.0, None),
        (-1.0, 10.0, None),
        (1e9, 10.0, None),
        (9e18, 10.0, None),
        (1.0, 90000.0, None),  # the cover of a song
        (7.0, 1000.0, 7),
    ]:
        with open_source(made("+", FRAME_COUNT=count, FPS=fps)) as source:
            assert source.length == length


@pytest.mark.parametrize(
    ("fps", "rate"),
    [(0.0, 25), (0.09, 25), (0.1, 0.1), (29.97, 29.97), (1000.0, 1000), (90000.0, 25)],
)
def test_rate_that_no_video_has_is_taken_as_25(made, fps, rate):
    with open_source(made("+", FPS=fps)) as source:
        assert source.even_rate() == rate


EVEN = [i / 10 for i in range(984)]


@pytest.mark.parametrize(
    ("packets", "fps", "every", "rate"),
    [
        ([], 10, 1, 10),
        ([0], 10, 1, 10),
        ([0, 0, 0], 10, 1, 10),
        ([0.2, 0, 0.1, 0.3], 9.9, 1, 9.9),
        ([0, 0.099, 0.201, 0.3], 10, 1, 10),  # as some files store them
        ([5, 5.1, 5.2], 10, 1, 10),
        ([0, 0.1, None, 0.3, 0.4], 9.9, 1, 10),
        ([0, 0.1, 0.2, 0.3, 0.5, 0.7], 8, 1, 10),  # it varies
        ([0, 0.1, 0.2, 0.3, 0.4, 0.5, 1, 1.1, 1.2], 8, 2, 5),
        ([0, 0.1, 0.21, 0.3, 0.5, 0.7], 8, 1, 10),
        ([0, 0.1, 0.25, 0.35, 0.45, 0.9], 8, 1, 10),
        ([0, 0.001, 0.002, 0.5], 10, 1, 120),
        ([0, 20, 60], 10, 1, 0.1),
        ([*EVEN, *range(100, 116)], 9.999, 1, 9.999),  # the last ones of a part may miss others
        ([*EVEN[:-1], 99, *range(100, 116)], 9.999, 1, 10),
        (
            [*EVEN, *(i / 10 for i in range(984, 1000)), 2000, 3000],
            9.999,
            1,
            9.999,
        ),  # more are not looked at
    ],
)
def test_even_rate_is_that_of_frames_close_to_each_other(made, packets, fps, every, rate):
    path = made("+", packets=packets, FPS=float(fps))
    with open_source(path, Reading(every=every)) as source:
        assert source.even_rate() == pytest.approx(rate, abs=1e-6)


@pytest.mark.parametrize(
    ("width", "height", "turned", "aspect"),
    [
        (4, 3, 0, 4 / 3),
        (4, 3, 90, 3 / 4),
        (4, 3, 180, 4 / 3),
        (4, 3, 270, 3 / 4),
        (4, 1, 0, 4),
        (1, 4, 0, 1 / 4),
        (5, 1, 0, 1),
        (1, 5, 0, 1),
        (0, 3, 0, 1),
        (3, 0, 0, 1),
    ],
)
def test_aspect_of_pixels_is_turned_with_the_picture(made, width, height, turned, aspect):
    path = made("+", SAR_NUM=width, SAR_DEN=height, ORIENTATION_META=turned)
    assert read(path)[0][0].pixel_aspect == aspect


def test_frames_of_more_than_64_million_pixels_are_refused(made):
    read(made("+", FRAME_WIDTH=8000.0, FRAME_HEIGHT=8000.0))
    with pytest.raises(SourceError, match="a frame has more than 64000000 pixels"):
        open_source(made("+", FRAME_WIDTH=8000.0, FRAME_HEIGHT=8001.0))


@pytest.mark.parametrize("fourcc, said", [("av01", "is AV1, which"), ("mp4v", "contains no pict")])
def test_video_without_a_picture_says_why(made, fourcc, said):
    path = made("", FOURCC=float(cv2.VideoWriter_fourcc(*fourcc)))
    with pytest.raises(SourceError, match=f"^{re.escape(str(path))}: {said}"):
        read(path)


def test_sound_of_an_address_is_not_sent_again(made):
    with open_source(made("+", address="rtsp://127.0.0.1/s", FRAME_COUNT=1.0)) as source:
        assert source.sound is None


# What OpenCV does not open


UNREADABLE = {
    "no index": (MP4 + b"\0\0\1\0mdat" + bytes(248), "has no index (moov), as where the power"),
    "cut off": (MP4 + b"\0\1\0\0mdat" + bytes(248), "has no index (moov), as where the power"),
    "preallocated": (MP4 + bytes(5000), "has no index (moov), as where the power"),
    "fragment": (b"\0\0\0\x0cstypmsdh\0\0\0\x08moof\0\0\0\x08mdat", "is a fragment of a video"),
    "raw": (b"\0\0\0\x10ftypcrx \0\0\0\0\0\0\0\x08moov", "is a camera's raw file, which OpenCV"),
    "damaged": (MP4 + b"\0\0\0\x10moov" + bytes(8), "is a video that OpenCV does not read"),
    "other": (b"something else" * 99, "is neither a picture nor a video that OpenCV reads."),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_why_a_video_is_not_read_and_what_helps(tmp_path, name):
    data, said = UNREADABLE[name]
    (tmp_path / "clip.mp4").write_bytes(data)
    with pytest.raises(SourceError) as caught:
        open_source(str(tmp_path / "clip.mp4"))
    assert str(caught.value).startswith(f"{tmp_path / 'clip.mp4'}: {said}")


def whole_mp4(folder):
    """The bytes of a small MP4, its index in front."""
    path = numbered_video(folder / "whole.mp4", 2, *CODECS["mpeg4"], "-movflags", "faststart")
    return path.read_bytes()


def check_containers(path, data):
    path.write_bytes(data)
    for look in (containers.is_cut_off, containers.is_mirrored, containers.why_not_read):
        look(path)  # raises nothing


def test_every_beginning_of_a_file_is_looked_at_without_an_error(tmp_path):
    samples = [whole_mp4(tmp_path), matroska(9), avi(4, 400), asf(87), FLV]
    for data in samples:
        for length in range(0, min(len(data), 1500), 1 + len(data) // 300):
            check_containers(tmp_path / "clip", data[:length])


@pytest.mark.parametrize(
    "repeated",
    [b"\0\0\0\x08moov", b"\0\0\0\0moov", b"\0\0\0\2trak", b"RIFF\4\0\0\0", b"\xff", b"\0"],
)
def test_repeated_bytes_take_little_time(tmp_path, repeated):
    started = time.process_time()
    for start in (MP4, MATROSKA, b"RIFF", b"FLV"):
        check_containers(tmp_path / "clip", start + repeated * 500_000)
    assert time.process_time() - started < 10  # it takes 1.5


# What makes FFmpeg open other files or addresses


def id3(size=10, flags=0):
    """A note that music begins with, of so many bytes, which FFmpeg skips."""
    length = bytes((size >> 7 * i) & 0x7F for i in (3, 2, 1, 0))
    return b"ID3\4\0" + bytes([flags]) + length + bytes(size + 10 * bool(flags))


@pytest.mark.parametrize(
    "before",
    [
        b"",
        id3(),
        id3(300_000),
        id3() + id3(),
        id3(flags=0x10),
        b"\xef\xbb\xbf",
        b"\r\n ",
    ],
    ids=["at once", "note", "long note", "notes", "footer", "BOM", "blanks"],
)
@pytest.mark.parametrize("kind", ["M3U", "ffconcat", "SDP"])
def test_file_that_names_others_is_refused(tmp_path, kind, before):
    (tmp_path / "a.ts").write_bytes(b"G" * 188)
    text = {
        "M3U": b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:5.0,\na.ts\n#EXT-X-ENDLIST\n",
        "ffconcat": b"ffconcat version 1.0\nfile a.ts\n",
        "SDP": b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\nt=0 0\r\nm=video 5004 RTP/AVP 96\r\n",
    }
    (tmp_path / "clip.mp4").write_bytes(before + text[kind])
    said = "is an SDP file of an RTP stream" if kind == "SDP" else "is a list of other files"
    with pytest.raises(SourceError, match=said):
        open_source(str(tmp_path / "clip.mp4"))


def test_music_with_its_cover_is_no_list(tmp_path):
    ffmpeg("-f", "lavfi", "-i", "sine=d=1", "-f", "lavfi", "-i", "color=red:s=64x48:d=1",
           "-frames:v", 1, "-c:v", "mjpeg", "-disposition:v", "attached_pic",
           "-map", "0", "-map", "1", tmp_path / "song.mp3")  # fmt: skip
    assert len(read(tmp_path / "song.mp3")[0]) == 1
