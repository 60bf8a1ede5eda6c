"""Videos that play everywhere: H.264 at the frames' own times, with sound, where PyAV is installed.

What is asked of any result, H.264 or not, is in test_video.py and test_video_pace.py.
"""

import json
import os
import re
import shutil
import signal
import subprocess
from contextlib import closing
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
from demo_process import CAT, FAST, Demo, run_demo
from live_helpers import (
    browser,
    ffmpeg,
    film,
    images_of,
    numbered_video,
    numbers_of,
    small_disk,
    temporary_files,
    wait_until,
)

from media.film import RESERVE, Film, open_film
from media.frames import Frame
from media.outputs import OutputError
from media.sources import open_source

av = pytest.importorskip("av")
import media.h264  # noqa: E402
from media.h264 import H264Encoder  # noqa: E402

SAMPLES = ("-f", "s16le", "-ac", 1, "-ar", 48000, "-")
VIDEO = ("-c:v", "libx264", "-qp", "8", "-pix_fmt", "yuv420p")


def probe(path, entries):
    """What ffprobe says of a file's streams, packets or frames."""
    command = ["ffprobe", "-v", "error", "-show_data_hash", "md5", "-of", "json"]
    done = subprocess.run([*command, "-show_entries", entries, path], capture_output=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def times_of(path):
    """When each frame is shown, in seconds."""
    frames = probe(path, "frame=media_type,pts_time")["frames"]
    return [float(frame["pts_time"]) for frame in frames if frame["media_type"] == "video"]


def sound_of(path):
    """Packets of each audio stream: their times and the sums of their data."""
    entries = "stream=index,codec_type:packet=stream_index,pts_time,data_hash"
    probed = probe(path, entries)
    audio = [each["index"] for each in probed["streams"] if each["codec_type"] == "audio"]
    return [
        [
            (float(packet["pts_time"]), packet["data_hash"])
            for packet in probed["packets"]
            if packet["stream_index"] == index
        ]
        for index in audio
    ]


def with_sound(path, *options, tracks=1, seconds=4, silent=0):
    """A numbered video with tones of 440, 880 ... Hz, which begin after some silence."""
    video = numbered_video(path.with_name("silent.mkv"), 10 * seconds, "-c:v", "mpeg4", "-q:v", 2)
    inputs, maps = ["-i", video], ["-map", "0:v"]
    for track in range(1, tracks + 1):
        tone = f"aevalsrc=0.5*sin({440 * track}*2*PI*t)*gte(t\\,{silent}):d={seconds}:s=48000"
        inputs += ["-f", "lavfi", "-i", tone]
        maps += ["-map", f"{track}:a"]
    codec = ("libx264", "-pix_fmt", "yuv420p") if path.suffix == ".ts" else ("copy",)
    ffmpeg(*inputs, *maps, "-c:v", *codec, *options, path)
    return path


def loud_seconds(path):
    """The seconds of a file's sound at which it is loud."""
    raw = ffmpeg(
        "-i", path, "-af", "aresample=async=1:first_pts=0:min_hard_comp=0.01", *SAMPLES
    ).stdout
    return np.flatnonzero(np.abs(np.frombuffer(raw, "<i2")) > 3000) / 48000


def heard(path):
    """The first and the last of them."""
    return tuple(loud_seconds(path)[[0, -1]])


def written_again(path, folder, name="result.mp4"):
    """Write the frames of a video as they are; returns what is said of the result."""
    with open_source(str(path)) as source:
        with closing(open_film(str(folder / name), source)) as made:
            for frame in source:
                made.write(frame, SimpleNamespace(drawn=frame.image))
        return made.close()


def test_result_is_h264_with_its_index_in_front(tmp_path):
    numbered_video(tmp_path / "in.mp4", 30)
    demo = run_demo("-i", "in.mp4", *FAST, cwd=tmp_path)
    assert (demo.returncode, demo.err) == (0, [])
    assert demo.out[-1] == "saved result.mp4, 30 frames\n"
    entries = "stream=codec_name,pix_fmt,color_space,color_range,width,height"
    assert probe(tmp_path / "result.mp4", entries)["streams"] == [
        {
            "codec_name": "h264",
            "pix_fmt": "yuv420p",
            "width": 64,
            "height": 48,
            "color_space": "smpte170m",
            "color_range": "tv",
        }
    ]
    data = (tmp_path / "result.mp4").read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")
    assert b"moof" not in data
    assert numbers_of(tmp_path / "result.mp4") == list(range(30))


@pytest.mark.parametrize("rate", ["24000/1001", "30000/1001", "25", "60"])
def test_frames_have_the_times_of_the_input(tmp_path, rate):
    written_again(numbered_video(tmp_path / "in.mp4", 50, rate=rate), tmp_path)
    assert times_of(tmp_path / "result.mp4") == times_of(tmp_path / "in.mp4")
    assert film(tmp_path / "result.mp4")["seconds"] == film(tmp_path / "in.mp4")["seconds"]


def test_frames_have_the_times_of_the_input_at_variable_frame_rate(tmp_path):
    rule = "setpts='round((N*0.04+gt(N,20)*0.5+gt(N,40)*(N-40)*0.3)/TB)'"
    options = ("-vf", rule, "-vsync", "passthrough", "-enc_time_base", "1:1000")
    written_again(numbered_video(tmp_path / "in.mp4", 60, *options, *VIDEO, rate=1000), tmp_path)
    assert numbers_of(tmp_path / "result.mp4") == list(range(60))
    given, made = times_of(tmp_path / "in.mp4"), times_of(tmp_path / "result.mp4")
    assert made == given
    assert np.ptp(np.diff(given)) > 0.4


@pytest.mark.parametrize(
    "ending, codec", [("mp4", "aac"), ("avi", "mp3"), ("mkv", "libopus"), ("mkv", "flac")]
)
def test_sound_is_copied_packet_by_packet(tmp_path, ending, codec):
    whole, path = with_sound(tmp_path / f"a.{ending}", "-c:a", codec), tmp_path / f"in.{ending}"
    ffmpeg("-i", whole, "-map", "0:a", "-map", "0:v", "-c", "copy", path)  # the sound comes first
    written_again(path, tmp_path)
    given, made = sound_of(path), sound_of(tmp_path / "result.mp4")
    (hashes,) = ([sum_ for _, sum_ in packets] for packets in given)
    assert len(hashes) > 30
    assert [sum_ for _, sum_ in made[0]] == hashes
    times = [[seconds for seconds, _ in packets[0]] for packets in (given, made)]
    assert times[1] == pytest.approx(times[0], abs=0.03)


@pytest.mark.parametrize("codec", ["aac", "ac3"])
def test_both_tracks_are_whole_and_keep_their_languages(tmp_path, codec):
    languages = ("-metadata:s:a:0", "language=deu", "-metadata:s:a:1", "language=fra")
    written_again(with_sound(tmp_path / "in.mp4", "-c:a", codec, *languages, tracks=2), tmp_path)
    one, other = sound_of(tmp_path / "result.mp4")
    if codec == "aac":  # copied
        assert [one, other] == sound_of(tmp_path / "in.mp4")
    assert one != other
    assert len(one) == len(other) > 4 * 48_000 / 1024
    tags = probe(tmp_path / "result.mp4", "stream_tags=language")["streams"]
    assert [stream["tags"]["language"] for stream in tags][1:] == ["deu", "fra"]


@pytest.mark.parametrize(
    "ending, codec",
    [
        ("mov", "pcm_s16le"),
        ("mkv", "libvorbis"),
        ("avi", "ac3"),
        ("ts", "aac"),
        ("mp4", "aac"),
        # Of these the file counts only the channels:
        ("avi", "pcm_s16le"),
        ("avi", "pcm_s16le -ac 2"),
        ("mkv", "pcm_alaw -ar 8000"),
        ("mkv", "adpcm_ima_wav -ar 8000"),
        ("wmv", "wmav2"),
        ("mov", "pcm_s24le -ar 192000"),  # AAC has no such rate
    ],
)
def test_sound_is_heard_when_it_is_in_the_input(tmp_path, ending, codec):
    path = with_sound(tmp_path / f"in.{ending}", "-c:a", *codec.split(), silent=2)
    assert "without" not in written_again(path, tmp_path)
    streams = probe(tmp_path / "result.mp4", "stream=codec_name")["streams"]
    assert [stream["codec_name"] for stream in streams] == ["h264", "aac"]
    assert heard(tmp_path / "result.mp4") == pytest.approx((2, 4), abs=0.05)


def test_mp3_of_a_rate_that_an_mp4_lacks_is_heard_when_it_is_in_the_input(tmp_path):
    path = with_sound(tmp_path / "in.avi", "-c:a", "mp3", "-ar", 8000, silent=2)
    assert "without" not in written_again(path, tmp_path)
    streams = probe(tmp_path / "result.mp4", "stream=codec_name")["streams"]
    assert [stream["codec_name"] for stream in streams] == ["h264", "aac"]
    assert heard(tmp_path / "result.mp4") == pytest.approx(heard(path), abs=0.01)


@pytest.mark.parametrize("what", ["kind", "order of channels"])
def test_sound_that_can_not_be_written_is_left_out_and_the_last_line_says_so(tmp_path, what):
    if what == "kind":
        path = with_sound(tmp_path / "in.avi", "-c:a", "mp3")
        data = path.read_bytes()
        start = data.index(b"strf", data.index(b"auds")) + 8  # of WAVEFORMATEX: its wFormatTag
        path.write_bytes(data[:start] + b"\x77\x77" + data[start + 2 :])
    else:  # one of its own, on which PyAV 18 crashes
        layout = ("-af", "aformat=channel_layouts=7.1")
        path = with_sound(tmp_path / "in.mov", *layout, "-c:a", "pcm_s16le")
    said = written_again(path, tmp_path)
    assert said.endswith("result.mp4, 40 frames (without its sound, which can't be written)")
    assert numbers_of(tmp_path / "result.mp4") == list(range(40))
    assert sound_of(tmp_path / "result.mp4") == []


def test_sound_ends_where_the_run_was_ended(tmp_path):
    with_sound(tmp_path / "in.mp4", "-c:a", "aac", seconds=60)
    with Demo("-i", "in.mp4", "--size", "128", "--json", "-", cwd=tmp_path) as demo:
        demo.wait_lines(25)
        demo.send(signal.SIGINT)
        assert demo.finish() == 130
    made = film(tmp_path / "result.mp4")
    assert made["frames"] < 600
    (packets,) = sound_of(tmp_path / "result.mp4")
    assert packets[-1][0] == pytest.approx(made["frames"] / 10, abs=0.05)
    assert temporary_files(tmp_path) == []


def test_what_a_killed_run_leaves_plays(tmp_path):
    with_sound(tmp_path / "in.mp4", "-c:a", "aac", seconds=60)
    with Demo("-i", "in.mp4", "--size", "64", "--json", "-", cwd=tmp_path) as demo:
        demo.wait_lines(60)
        demo.send(signal.SIGKILL)
        demo.finish()
    (name,) = temporary_files(tmp_path)
    assert re.fullmatch(r"result\.[0-9a-f]{8}\.partial\.mp4", name)
    numbers = numbers_of(tmp_path / name)
    assert numbers == list(range(film(tmp_path / name)["frames"]))
    assert len(numbers) >= 20  # of 2 seconds from one key frame to the next, two are done
    assert len(sound_of(tmp_path / name)[0]) > 80


def film_of(folder, encoder, times):
    """A film of frames, each of its own shade, shown at these seconds; returns its path."""
    with closing(Film(str(folder / "x.mp4"), 10, encoder, clock=lambda second: second)) as made:
        for number, second in enumerate(times):
            made.write(second, SimpleNamespace(drawn=shade(number)))
    return folder / "x.mp4"


def shade(number):
    return np.full((48, 64, 3), 10 * number, np.uint8)


def test_times_are_kept_where_none_is_later_than_the_one_before(tmp_path):
    path = film_of(tmp_path, H264Encoder(), [5, 5, 5.5, 5.25, 6])
    tick = 1 / 120_000
    expected = [0, tick, 0.5, 0.5 + tick, 1]
    assert times_of(path) == pytest.approx(expected, abs=tick / 10)
    assert film(path)["seconds"] == pytest.approx(1.1, abs=0.001)


@pytest.mark.parametrize("ends, seconds", [(8, 8), (12.5, 12), (6, 12), (None, 12)])
def test_last_image_is_shown_for_its_time_but_not_after_the_end_of_the_input(
    tmp_path, ends, seconds
):
    with closing(Film(str(tmp_path / "x.mp4"), 1 / 6, H264Encoder(None, ends))) as made:
        for number in range(2):
            made.add(shade(number))
    assert film(tmp_path / "x.mp4")["seconds"] == pytest.approx(seconds)
    assert times_of(tmp_path / "x.mp4") == [0, 6]


def test_key_frames_are_two_seconds_apart(tmp_path):
    path = film_of(tmp_path, H264Encoder(), [i / 4 for i in range(24)])
    frames = probe(path, "frame=pict_type,pts_time")["frames"]
    assert {frame["pict_type"] for frame in frames} == {"I", "P"}
    keys = [float(frame["pts_time"]) for frame in frames if frame["pict_type"] == "I"]
    assert keys == [0, 2, 4]


def test_sound_begins_where_the_film_does(tmp_path):
    path = with_sound(tmp_path / "in.mkv", "-c:a", "aac", silent=2)
    # The frames before second 1.5 could not be read, or were not wanted.
    made = film_of(tmp_path, H264Encoder(str(path)), [1.5, 2, 3.9])
    assert heard(made)[0] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("codec", ["aac", "ac3"])
@pytest.mark.parametrize(("sound", "before"), [(1.8, 0), (2, 0.5), (2.3, 0)])
def test_sound_of_joined_recordings_stays_with_the_pictures(tmp_path, codec, sound, before):
    """In each of ten parts a tone at 1 s of the sound, which begins some time before the pictures.

    It is shorter or longer than they are.
    """
    numbered_video(tmp_path / "silent.mkv", 20)
    tone = f"aevalsrc=0.5*sin(2764*t)*between(t\\,1\\,1.2):d={sound}:s=48000"
    inputs = ("-itsoffset", before, "-i", tmp_path / "silent.mkv", "-f", "lavfi", "-i", tone)
    ffmpeg(*inputs, "-c:v", "copy", "-c:a", codec, tmp_path / "part.ts")
    (tmp_path / "in.ts").write_bytes(10 * (tmp_path / "part.ts").read_bytes())
    assert written_again(tmp_path / "in.ts", tmp_path).endswith("result.mp4, 200 frames")
    assert times_of(tmp_path / "result.mp4") == pytest.approx([i / 10 for i in range(200)])
    loud = loud_seconds(tmp_path / "result.mp4")
    begins = loud[np.diff(loud, prepend=-1) > 0.5]
    assert begins == pytest.approx([2 * part + 1 - before for part in range(10)], abs=0.05)


@pytest.mark.parametrize("codec", ["aac", "ac3"])
def test_sound_that_is_damaged_ends_there_and_the_images_go_on(tmp_path, monkeypatch, codec):
    path = with_sound(tmp_path / "in.mkv", "-c:a", codec)
    whole = media.h264.packets_of

    def damaged(*arguments):
        yield from islice(whole(*arguments), 50)
        raise av.error.InvalidDataError(1094995529, "Invalid data found")

    monkeypatch.setattr(media.h264, "packets_of", damaged)
    made = Film(str(tmp_path / "x.mp4"), 10, H264Encoder(str(path)))
    with closing(made):
        for number in range(40):
            made.write(Frame("", 0, number / 10, None), SimpleNamespace(drawn=shade(number % 20)))
    seconds = sound_of(tmp_path / "x.mp4")[0][-1][0]
    assert 1 < seconds < 2.2
    said = made.close()
    assert re.search(r"x\.mp4, 40 frames \(with [12] s of its sound\)$", said), said
    assert len(times_of(tmp_path / "x.mp4")) == 40


def test_result_that_has_no_room_for_a_second_copy_keeps_its_fragments(tmp_path, monkeypatch):
    def full(*_):
        raise av.error.OSError(28, "No space left on device")

    monkeypatch.setattr(media.h264, "put_index_in_front", full)
    path = film_of(tmp_path, H264Encoder(), [0, 1])
    assert b"moof" in path.read_bytes()
    assert len(images_of(path)) == 2
    assert os.listdir(tmp_path) == ["x.mp4"]


def test_index_is_put_in_front_in_a_file_of_a_new_name(tmp_path, monkeypatch):
    (tmp_path / "mine").write_text("mine")
    made = Film(str(tmp_path / "x.mp4"), 10, H264Encoder())
    made.add(shade(1))
    (name,) = temporary_files(tmp_path)
    for taken in (f".{name}", f".{name[:-4]}.00000000.partial.mp4"):
        (tmp_path / taken).symlink_to("mine")
    monkeypatch.setattr(os, "urandom", bytes)  # so that the second can be foreseen
    made.close()
    assert (tmp_path / "mine").read_text() == "mine"
    assert len(images_of(tmp_path / "x.mp4")) == 1


def test_size_that_h264_can_not_have_is_refused(tmp_path):
    made = Film(str(tmp_path / "x.mp4"), 10, H264Encoder())
    with pytest.raises(OutputError, match="x.mp4: a video of 20000x16 at 10 frames"), closing(made):
        made.add(np.zeros((16, 20_000, 3), np.uint8))
    assert os.listdir(tmp_path) == []


def noise(frames):
    random = np.random.default_rng(0)
    for _ in range(frames):
        yield random.integers(0, 256, (240, 320, 3), np.uint8)


@pytest.mark.parametrize("reserve", [0, RESERVE])
def test_full_disk_leaves_a_video_that_plays(tmp_path, monkeypatch, reserve):
    monkeypatch.setattr("media.film.RESERVE", reserve)
    with small_disk(tmp_path / "disk", "4m") as disk:
        path = disk / "x.mp4"
        made = Film(str(path), 10, H264Encoder())
        with pytest.raises(OutputError) as caught, closing(made):
            for image in noise(2000):
                made.add(image)
        assert "disk is full" in str(caught.value) or "No space left" in str(caught.value)
        assert 3 < len(images_of(path)) <= made.length
        assert os.listdir(disk) == ["x.mp4"]


# In a browser.


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver


def played(chromium, path):
    """The state of a video in Chromium when a second of it has been played, or it is refused."""
    chromium.get(path.as_uri())
    start = "const v = document.querySelector('video'); v.muted = true; v.play().catch(() => 0)"
    chromium.execute_script(start)
    state = """const v = document.querySelector('video');
        return {seconds: v.currentTime, refused: v.networkState == v.NETWORK_NO_SOURCE,
        size: [v.videoWidth, v.videoHeight], duration: v.duration,
        sound: v.webkitAudioDecodedByteCount}"""

    def ended():
        found = chromium.execute_script(state)
        return (found["seconds"] > 1 or found["refused"]) and found

    return wait_until(ended, "the video plays in the browser")


@pytest.mark.parametrize("codec", ["aac", "mp3", "libopus", "flac", "ac3"])
def test_result_plays_in_a_browser_with_its_sound(tmp_path, chromium, codec):
    written_again(with_sound(tmp_path / "in.mkv", "-c:a", codec), tmp_path)
    state = played(chromium, tmp_path / "result.mp4")
    assert (state["refused"], state["size"]) == (False, [64, 48])
    assert state["duration"] == pytest.approx(4, abs=0.1)
    assert state["sound"] > 1000


def test_what_is_there_before_the_end_plays_in_a_browser(tmp_path, chromium):
    path = with_sound(tmp_path / "in.mp4", "-c:a", "aac", seconds=6)
    with open_source(str(path)) as source:
        made = open_film(str(tmp_path / "result.mp4"), source)
        with closing(made):
            for frame in source:
                made.write(frame, SimpleNamespace(drawn=frame.image))
            (name,) = temporary_files(tmp_path)
            shutil.copy(tmp_path / name, tmp_path / "so_far.mp4")
    state = played(chromium, tmp_path / "so_far.mp4")
    assert (state["refused"], state["size"]) == (False, [64, 48])
    assert state["sound"] > 1000


def test_vp8_plays_in_a_browser(tmp_path, chromium):
    written_again(numbered_video(tmp_path / "in.mp4", 30), tmp_path, "x.webm")
    state = played(chromium, tmp_path / "x.webm")
    assert (state["refused"], state["size"]) == (False, [64, 48])


def test_mpeg4_does_not_play_in_a_browser(tmp_path, chromium):  # or docs/flags.md has to change
    numbered_video(tmp_path / "x.mp4", 30, "-c:v", "mpeg4")
    assert played(chromium, tmp_path / "x.mp4")["refused"]


@pytest.fixture
def without_pyav(tmp_path):
    """Variables of a process in which PyAV can't be imported."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "av.py").write_text("raise ImportError('not here')\n")
    return {"PYTHONPATH": str(folder)}


def test_without_pyav_opencv_writes_and_the_last_line_says_what_browsers_want(
    tmp_path, without_pyav
):
    with_sound(tmp_path / "in.mp4", "-c:a", "aac", seconds=1)
    demo = run_demo("-i", "in.mp4", *FAST, cwd=tmp_path, env=without_pyav)
    assert (demo.returncode, demo.err) == (0, [])
    assert demo.out[-1] == "saved result.mp4, 10 frames (for browsers and sound: pip install av)\n"
    streams = probe(tmp_path / "result.mp4", "stream=codec_name")["streams"]
    assert [stream["codec_name"] for stream in streams] == ["mpeg4"]


def test_pyav_is_not_loaded_for_a_picture(tmp_path):
    script = "import sys, demo; code = demo.main(); sys.exit(code or 'av' in sys.modules)"
    demo = run_demo("-i", CAT, *FAST, cwd=tmp_path, script=script, fresh=True)
    assert demo.returncode == 0, demo.stderr
