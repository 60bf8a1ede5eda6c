"""Video files, and what they share with streams: FFmpeg opens both."""

import math
import os

import cv2
import numpy as np

from media.addresses import Answer, confined, hide_password, why_not_opened
from media.containers import (
    is_cut_off,
    is_mirrored,
    is_mp4,
    states_times,
    why_not_read,
    why_refused,
)
from media.frames import Frame, Source, SourceError
from media.packets import AHEAD, FAILURES, REORDERED, Changes, packets, raw_capture, seconds_of
from media.pictures import reason_of

OPEN_TIMEOUT = READ_TIMEOUT = 10  # seconds a stream may stay silent
LARGEST_FRAME = 64_000_000  # pixels of a video; 8K has 33 million
STREAM_FAILURES = 3  # the same behind an address, where each may take READ_TIMEOUT
PACKETS = 1000  # looked at to know whether a video's frame rate varies
LONGEST_GAP = 600  # seconds between two frames; more is a jump of the clock
LONGEST_STATED_GAP = 86_400  # the same where a file states times, as of a time lapse
AV1 = (b"av01", b"AV01")
COVERS = (b"MJPG", b"mjpg", b"jpeg", b"png ", b"MPNG")  # of a track with one picture
SAME_TIME = 0.002  # seconds: some files store milliseconds


class Video(Source):
    """A video file, upright as its player shows it, or a recording behind an address.

    A damaged frame is a frame with an error; those after it are read. `path` is that of a file,
    None behind an address; `folder` a temporary one that is removed when it is closed.
    """

    def __init__(self, name, capture, how, path, folder=None):
        super().__init__(name)
        self._capture, self._every, self._notify = capture, how.every, how.notify
        count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self._stored = round(count) if 0 < count < 1e9 else None
        if capture.get(cv2.CAP_PROP_FPS) > 1000:  # the cover of a song, as one frame of a video
            self._stored = None
        self.fps = frame_rate(capture)
        self._start, self._until = how.start, how.start + how.duration
        stored = self._stored
        if stored and (how.start or how.duration < math.inf):  # about, where the rate varies
            stored = min(stored, self._until * self.fps) - how.start * self.fps
        self.length = stored and max(0, math.ceil(stored / self._every))
        ends = min(self._until, self._stored / self.fps if self._stored else math.inf)
        self.ends = ends if self._every > 1 and ends < math.inf else None
        self._pixel_aspect = pixel_aspect(capture)
        # Behind an address it would have to be sent again.
        self.sound = path and _as_file(path)
        self._ends_at = None  # where it is cut off
        self._path, self._folder = path, folder
        is_file = path is not None and os.path.isfile(path)
        self._is_mp4 = is_file and is_mp4(path)
        # OpenCV turns a picture by the angle that the file states, but does not mirror it first.
        turned = capture.get(cv2.CAP_PROP_ORIENTATION_META) % 180
        self._mirror = int(bool(turned)) if is_file and is_mirrored(path) else None
        self._longest_gap = LONGEST_STATED_GAP if is_file and states_times(path) else LONGEST_GAP
        # What follows where its pictures change their size or form.
        self._changes = self._part = self._spent = None
        self._has_packets = is_file  # of the track that is decoded
        if is_file:
            self._look_at_packets(raw_capture(_as_file(path)))

    def _look_at_packets(self, raw):
        self._changes = Changes(raw)
        if _track_of(raw) == _track_of(self._capture):
            return
        if _fourcc(self._capture) in COVERS and self._changes.begin():
            self.fps, self._stored = frame_rate(raw), round(raw.get(cv2.CAP_PROP_FRAME_COUNT))
            self.length = math.ceil(self._stored / self._every)
            return
        self._notify(f"{self.name}: contains several videos, of which only the first is looked at")
        self._has_packets, self._changes = False, None

    def __exit__(self, *_):
        self._capture.release()
        if self._folder:
            self._folder.cleanup()

    def __iter__(self):
        index = 0
        try:
            for seconds, good in self._places():
                if seconds >= self._until:
                    return
                if index % self._every == 0 and seconds >= self._start:
                    image = self._retrieve() if good else None
                    error = f"{self.name}, frame {index}: can't be decoded" if image is None else ""
                    yield Frame(self.name, index, seconds, image, error, True, self._pixel_aspect)
                index += 1
        except cv2.error as error:
            reason = reason_of(error)
            raise SourceError(f"{self.name}, frame {index}: can't be read: {reason}.") from error
        if index and seconds < self._start:
            raise SourceError(f"{self.name}: ends at {seconds:.1f} s. Give a smaller --start.")
        if not index:
            what = "contains no picture that OpenCV reads."
            if self._path is None:
                what = f"{what[:-1]}, or the server can't seek in it. Download it, give the file."
            if _fourcc(self._capture) in AV1:
                what = "is AV1, which this OpenCV can't decode. Convert it to H.264."
            raise SourceError(f"{self.name}: {what}")

    def _retrieve(self):
        image = self._capture.retrieve()[1]
        return image if image is None or self._mirror is None else cv2.flip(image, self._mirror)

    def _places(self):
        """Yield for each frame its time, and whether it is good: it can be retrieved then."""
        index, before, times = 0, None, None
        unexplained = 0  # failures of which no lost frame is known yet
        for seconds, failures in self._grabbed():
            if failures and times is None:
                times = self._packet_times()
            lost = []
            if times is not None:
                lost = _lost_times(times, index, before, seconds, failures, self.fps)
            yield from ((each, False) for each in lost)
            yield seconds, True
            index, before = index + len(lost) + 1, seconds
            unexplained = max(0, unexplained + failures - len(lost))
        if 0 < index < (self._stored or 0):
            for seconds in self._missing_at_the_end(index, before, unexplained):
                yield seconds, False

    def _grabbed(self):
        """Yield for each frame that can be grabbed its time, and how many could not before it."""
        before, offset, failures, place, times = None, 0.0, 0, 0, iter(())
        start = stored = 0.0  # where the file that is open begins
        limit = FAILURES if self._path else STREAM_FAILURES
        while True:
            self._look_ahead(place, stored)
            if self._part and (place >= self._part.start or failures == limit):
                failures = max(0, self._part.start - place)
                start, times = self._enter_part()
            if failures == limit:
                return
            if not self._capture.grab():  # at the end, and for a damaged frame
                failures += 1
                continue
            stored = next(times, start + seconds_of(self._capture))
            if self._is_of_next_part(stored, place):
                place = self._part.start
                continue
            seconds = _on_time(stored + offset, before, self._longest_gap, failures, self.fps)
            yield seconds, failures
            before, offset, place = seconds, seconds - stored, place + failures + 1
            failures = 0

    def _look_ahead(self, place, second):
        """Open what follows a change, before the decoder of now comes to it."""
        # Where some packets are shown in no frame, the decoder is further than its place.
        if self._part or not self._changes or not self._changes.found(place + AHEAD, second + 1):
            return
        import tempfile  # not at the top: one picture must stay fast

        try:
            self._folder = self._folder or tempfile.TemporaryDirectory()
            part = self._changes.write(self._folder.name)
        except OSError as error:
            where = self._folder.name if self._folder else "the folder (TMPDIR)"
            raise SourceError(
                f"{self.name}: its pictures change, and {where}, where what follows "
                f"is kept, can't be written: {error.strerror}."
            ) from error
        capture = cv2.VideoCapture(part.path, cv2.CAP_FFMPEG)
        _check_size(capture, f"{self.name}, frame {part.start}")
        if capture.isOpened():
            self._part, self._next = part, capture

    def _enter_part(self):
        """Go on with what follows a change: returns its start, and its times if it stores none."""
        self._capture.release()
        if self._spent:
            os.unlink(self._spent)
        part, self._part, self._capture = self._part, None, self._next
        self._spent, self._pixel_aspect = part.path, pixel_aspect(self._capture)
        return (part.times[0], iter(())) if part.is_timed else (0.0, iter(part.times))

    def _is_of_next_part(self, seconds, place):
        """Whether a frame comes from beyond the change: some decoders lose the last one there."""
        part = self._part
        if part is None:
            return False
        first = part.times[0]
        if part.before and first > max(part.before) + SAME_TIME:
            return seconds > first - SAME_TIME
        near = place + REORDERED >= part.start and abs(seconds - first) < SAME_TIME
        return near and all(abs(seconds - each) > SAME_TIME for each in part.before)

    def _missing_at_the_end(self, index, before, failures):
        """Times of the damaged frames after the last good one; finds out what else is missing."""
        if self._path is None:
            cut_off = index < 0.9 * self._stored  # which is made from the duration
        else:
            cut_off = os.path.isfile(self._path) and is_cut_off(self._path)
        if cut_off:
            self._ends_at = index
            return []
        times = np.empty(0) if self._is_mp4 else self._packet_times()
        lost = [before + i / self.fps for i in range(1, failures + 1)][: self._stored - index]
        if len(times) > index and abs(times[index - 1] - before) < SAME_TIME:
            lost = times[index:].tolist()
        shown = index + len(lost)
        if self._is_mp4 and shown < self._stored:
            # An edit list hides frames, such as those before the place where a phone cut.
            self._notify(
                f"{self.name}: {shown} of {self._stored} frames are shown; "
                "the others were cut away, or are damaged"
            )
        return lost

    def _packet_times(self, limit=None):
        """When each frame of the file is to be shown, in seconds, sorted; nothing is decoded."""
        if not self._has_packets:  # behind an address it would be sent again
            return np.empty(0)
        times, damaged = [], 0
        capture = raw_capture(_as_file(self._path))
        for failures in packets(capture):
            times.append(seconds_of(capture))
            damaged += failures
            if len(times) == limit:
                break
        times = np.sort(times)
        # Of some damaged packets not even the time can be read: they are where the gaps are.
        for _ in range(damaged if limit is None and len(times) > 1 else 0):
            usual = np.median(np.diff(times))
            gap = np.argmax(np.diff(times, prepend=-usual))
            times = np.insert(times, gap, (times[gap - 1] if gap else -usual) + usual)
        return times if limit is None or len(times) < limit else times[:-REORDERED]

    def even_rate(self):
        """That of the frames taken; if it varies, that of those that follow each other closely."""
        fps = self.fps / self._every
        times = self._packet_times(PACKETS)[:: self._every]
        steps = np.diff(times)
        steps = steps[steps > 0]
        slots = np.rint((times - times[:1]) * fps)
        if not len(steps) or (np.diff(slots) == 1).all():
            return fps
        usual = np.percentile(steps, 10)
        usual = steps[(steps > usual / 2) & (steps < usual * 1.5)].mean()
        return float(np.clip(round(1 / usual, 2), 0.1, 120))

    def fault(self, done, unreadable, ended):
        if ended and self._ends_at is not None:
            where = f"frame {self._ends_at} of {self._stored}"
            return f"{self.name}: ends at {where}; is it cut off?"
        if unreadable:
            return f"{self.name}: {unreadable} of {done + unreadable} frames can't be read"
        return ""


def _on_time(seconds, before, longest_gap, failures, fps):
    """The time of a frame, after that of the one before even where the clock jumps or stands."""
    if before is None:
        return 0.0 if abs(seconds) > LONGEST_GAP else seconds  # a file without times, on OpenCV 4
    if 1e-6 < seconds - before < longest_gap:
        return seconds
    return before + (1 + failures) / fps


def _lost_times(times, index, before, seconds, failures, fps):
    """Times of the frames lost between the one before and this one.

    A decoder may report a damaged frame earlier than it is to be shown, or not at all, and one
    damaged frame may take others with it. So the packets tell, where their times are those of
    the frames.
    """
    if len(times) and (index == 0 or abs(times[min(index, len(times)) - 1] - before) < SAME_TIME):
        place = int(np.argmin(np.abs(times - seconds)))
        if abs(times[place] - seconds) < SAME_TIME:
            return times[index:place].tolist()
    before = -1 / fps if before is None else before
    return [before + i / fps for i in range(1, failures + 1)]


def _fourcc(capture):
    return (int(capture.get(cv2.CAP_PROP_FOURCC)) % (1 << 32)).to_bytes(4, "little")


def _track_of(capture):
    """What tells one track of a file from another, mostly."""
    size = capture.get(cv2.CAP_PROP_FRAME_WIDTH), capture.get(cv2.CAP_PROP_FRAME_HEIGHT)
    return _fourcc(capture), *sorted(size)


def pixel_aspect(capture):
    """Width of a pixel over its height; 1 where a capture does not say."""
    width, height = capture.get(cv2.CAP_PROP_SAR_NUM), capture.get(cv2.CAP_PROP_SAR_DEN)
    if capture.get(cv2.CAP_PROP_ORIENTATION_META) % 180:  # it is turned after that
        width, height = height, width
    aspect = width / height if width > 0 and height > 0 else 1.0
    return aspect if 0.25 <= aspect <= 4 else 1.0


def open_capture(address, answer=Answer(), name=None):  # noqa: B008 -- frozen
    """cv2.VideoCapture of a file or stream that gives a picture; `answer`: the server's."""
    name = name or hide_password(address)
    if not _is_utf8(address):
        raise SourceError(f"{name}: its name is not valid UTF-8, which OpenCV needs. Rename it.")
    if "://" not in address and (fault := why_refused(address)):
        raise SourceError(f"{name}: {fault}")
    timeouts = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, OPEN_TIMEOUT * 1000]
    timeouts += [cv2.CAP_PROP_READ_TIMEOUT_MSEC, READ_TIMEOUT * 1000]
    with confined(address):
        capture = cv2.VideoCapture(_as_file(address), cv2.CAP_FFMPEG, timeouts)
    if not capture.isOpened():
        if "://" in address:
            raise SourceError(f"{name}: can't be opened. {why_not_opened(address, answer)}")
        raise SourceError(f"{name}: {why_not_read(address)}")
    _check_size(capture, name)
    return capture


def _is_utf8(name):
    """Whether cv2 takes this name; it crashes on a name that is not valid UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_size(capture, name):
    pixels = capture.get(cv2.CAP_PROP_FRAME_WIDTH) * capture.get(cv2.CAP_PROP_FRAME_HEIGHT)
    if pixels > LARGEST_FRAME:  # FFmpeg does not know OpenCV's limit
        raise SourceError(f"{name}: a frame has more than {LARGEST_FRAME} pixels.")


def _as_file(name):
    """The name as FFmpeg takes it: 12:30.mp4 alone would be an address of the kind "12"."""
    return name if "://" in name else os.path.join(".", name)


def frame_rate(capture):
    fps = capture.get(cv2.CAP_PROP_FPS)
    return fps if 0.1 <= fps <= 1000 else 25.0  # some cameras and streams say 0, or 90000
