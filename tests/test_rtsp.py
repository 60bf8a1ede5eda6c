"""RTSP, from a server that is not ours: GStreamer's, on loopback."""

import contextlib
import functools
import itertools
import shlex
import signal
import subprocess
from pathlib import Path

import pytest
from conftest import absent
from live_helpers import number_of, numbered_video

from media.frames import SourceError
from media.live import Live
from media.sources import Reading, open_source
from media.videos import Video

PYTHON = "/usr/bin/python3"  # Debian's, which its bindings of GStreamer are for
NEEDED = "import gi; gi.require_version('GstRtspServer', '1.0')"
H264 = "x264enc tune=zerolatency key-int-max=5 ! rtph264pay name=pay0 config-interval=-1 pt=96"
PICTURES = "videotestsrc is-live=true pattern={} ! video/x-raw,width=64,height=48,framerate=25/1"
LIVE = f"{PICTURES.format('red')} ! {H264}"
USER, PASSWORD, ESCAPED = "admin", "p@ss:1/", "p%40ss%3A1%2F"


@functools.cache
def has_server():
    """Whether GStreamer's server is installed for the system's Python."""
    with contextlib.suppress(OSError):
        return not subprocess.run([PYTHON, "-c", NEEDED], capture_output=True).returncode
    return False


@contextlib.contextmanager
def server(pipeline=LIVE, *login, port=0):
    """Serve what a pipeline makes; yields the address, and the process."""
    if not has_server():
        absent("gir1.2-gst-rtsp-server-1.0 or python3-gi is not installed")
    script = Path(__file__).with_name("rtsp_server.py")
    command = [PYTHON, str(script), str(port), pipeline, *login]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield f"rtsp://127.0.0.1:{int(process.stdout.readline())}/camera", process
        finally:
            process.kill()


def with_login(address, user=USER, password=ESCAPED):
    """The address with a user and password in it."""
    return address.replace("//", f"//{user}:{password}@")


def first_frame(source):
    return next(frame for frame in source if frame is not None)


def is_red(image):
    blue, green, red = image.reshape(-1, 3).mean(0)
    return image.shape == (48, 64, 3) and red > 200 and max(blue, green) < 60


@pytest.fixture(params=["tcp", "udp"])
def transport(request, monkeypatch):
    """How the pictures come: as OpenCV asks for them, or as the user's own environment does."""
    monkeypatch.delenv("OPENCV_FFMPEG_CAPTURE_OPTIONS", raising=False)
    if request.param == "udp":
        monkeypatch.setenv("OPENCV_FFMPEG_CAPTURE_OPTIONS", "rtsp_transport;udp")
    return request.param


@pytest.mark.parametrize(
    "pipeline",
    [
        LIVE,
        f"{LIVE} audiotestsrc is-live=true ! mulawenc ! rtppcmupay name=pay1 pt=0",
        f"{PICTURES.format('red')} ! x265enc tune=zerolatency key-int-max=5 "
        "! h265parse ! rtph265pay name=pay0 config-interval=-1 pt=96",
    ],
    ids=["H.264", "with sound", "H.265"],
)
def test_live_pictures_are_shown(transport, pipeline):
    with server(pipeline) as (address, _), open_source(address, Reading(reconnect=0)) as live:
        assert isinstance(live, Live)
        assert is_red(first_frame(live).image)


def test_recording_is_read_once(transport, tmp_path):
    path = numbered_video(tmp_path / "a.mp4", 10)
    pipeline = f"filesrc location={shlex.quote(str(path))} ! qtdemux ! h264parse"
    with (
        server(f"{pipeline} ! rtph264pay name=pay0 pt=96") as (address, _),
        open_source(address) as source,
    ):
        assert isinstance(source, Video)
        frames = list(source)
    assert [number_of(frame.image) for frame in frames] == list(range(10))


@pytest.mark.parametrize("scheme", ["Basic", "Digest"])
def test_login_in_an_address_is_used_and_not_shown(scheme):
    with (
        server(LIVE, scheme, USER, PASSWORD) as (address, _),
        open_source(with_login(address), Reading(reconnect=0)) as live,
    ):
        frame = first_frame(live)
    assert is_red(frame.image)
    assert frame.source == with_login(address, USER, "***")


@pytest.mark.parametrize("scheme", ["Basic", "Digest"])
@pytest.mark.parametrize(
    ("user", "password", "path", "said"),
    [
        ("", "", "", "The server wants a user and password: rtsp://USER:PASSWORD@host/..."),
        (USER, "wrong", "", "The server answers: 401 Unauthorized."),
        ("other", ESCAPED, "", "The server answers: 401 Unauthorized."),
        (USER, ESCAPED, "2", "The server answers: 404 Not Found."),
    ],
)
def test_refusal_is_named(scheme, user, password, path, said):
    with server(LIVE, scheme, USER, PASSWORD) as (address, _):
        address = (with_login(address, user, password) if user else address) + path
        with pytest.raises(SourceError) as caught:
            open_source(address)
    assert f": can't be opened. {said}" in str(caught.value)
    assert not password or password not in str(caught.value)


def test_wrong_path_is_named_where_no_password_is_wanted():
    with server() as (address, _), pytest.raises(SourceError) as caught:
        open_source(address + "2")
    assert str(caught.value) == f"{address}2: can't be opened. The server answers: 404 Not Found."


@pytest.mark.parametrize("scheme", ["Basic", "Digest"])
def test_stream_without_pictures_is_named(scheme):
    sound = "audiotestsrc is-live=true ! mulawenc ! rtppcmupay name=pay0 pt=0"
    with (
        server(sound, scheme, USER, PASSWORD) as (address, _),
        pytest.raises(SourceError, match="The server knows it, but sends no pictures that OpenCV"),
    ):
        open_source(with_login(address))


def test_server_that_comes_back_is_found_again(transport, monkeypatch):
    monkeypatch.setattr("media.live.LONGEST_PAUSE", 0.2)
    monkeypatch.setattr("media.videos.READ_TIMEOUT", 1)
    monkeypatch.setattr("media.videos.OPEN_TIMEOUT", 5)
    told = []
    how = Reading(reconnect=100, notify=told.append)
    with contextlib.ExitStack() as first:
        address, process = first.enter_context(server())
        live = first.enter_context(open_source(address, how))
        before = first_frame(live)
        process.kill()
        process.wait()
        port = address.split(":")[2].split("/")[0]
        blue = LIVE.replace("pattern=red", "pattern=blue")
        with server(blue, port=port):
            after = next(f for f in live if f is not None and not is_red(f.image))
    assert told[0] == f"{address}: lost, trying again in 0.2 s"
    assert f"{address}: back" in told  # and lost again, when the second server has gone
    assert after.index > before.index and after.time > before.time
    assert after.image.reshape(-1, 3).mean(0).argmax() == 0


def test_server_that_stalls_is_lost_at_the_time_out(transport, monkeypatch):
    monkeypatch.setattr("media.videos.READ_TIMEOUT", 2)
    with (
        server() as (address, process),
        open_source(address, Reading(reconnect=0)) as live,
    ):
        times = {frame.index: frame.time for frame in itertools.islice(filter(None, live), 3)}
        process.send_signal(signal.SIGSTOP)
        times |= {frame.index: frame.time for frame in filter(None, live)}
        assert live.fault(1, 0, ended=True) == f"{address}: gives no more frames"
    # Frames that the decoder kept would each come after one more wait, as if they were new.
    assert all(time - times.get(index - 1, time) < 1.9 for index, time in times.items())


def test_server_that_does_not_answer_is_given_up(monkeypatch):
    monkeypatch.setattr("media.videos.OPEN_TIMEOUT", 1)
    monkeypatch.setattr("media.addresses.ASK_TIMEOUT", 0.2)
    with server() as (address, process):
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(SourceError, match="Is the address right, the server up"):
            open_source(address)
