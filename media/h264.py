"""Videos that browsers, phones and QuickTime play: H.264 in MP4, with sound, written by PyAV."""

import os
from contextlib import closing, contextmanager
from fractions import Fraction

import av
import cv2

from media.outputs import VideoFile, remove, temporary_name

if int(av.__version__.split(".")[0]) < 15 or "libx264" not in av.codecs_available:
    raise ImportError("this PyAV is too old, or has no libx264")

CLOCK = 120_000  # ticks a second: whole ones for milliseconds and the rates of film and television
KEY = 2 * CLOCK  # from one key frame to the next, the most that is lost when the power goes
# No frame waits for later ones. The colours are those that cv2.cvtColor computes.
ENCODER = {"preset": "superfast", "crf": "23", "bf": "0", "rc-lookahead": "0"}
ENCODER |= {"colorspace": "smpte170m", "color_range": "tv"}
# What is in front of them waits for the first packets, which tell more of some kinds of sound.
FRAGMENTS = {"movflags": "frag_keyframe+delay_moov+default_base_moof", "flush_packets": "1"}
COPIED = ("aac", "flac", "mp3", "opus")  # sound that browsers play in MP4; other becomes AAC


class H264File(VideoFile):
    """A sink that saves an MP4 video: each frame at its own time, with the sound of a file.

    While it grows it is in fragments, as `NAME.PID.partial.mp4`, and plays as far as it is written,
    whatever ends the process. `close` makes it a usual file with its index in front.

    Parameters
    ----------
    path : str
        Ends in .mp4; its folder exists.
    fps : float
        Frames a second, about; the last frame is shown for one of them.
    clock : callable, optional
        Takes a frame, returns the second at which it is shown; `frame.time` if not given.
    sound : str, optional
        The file that the frames come from.
    """

    def __init__(self, path, fps, clock=None, sound=None):
        super().__init__(path, fps, clock)
        self._part = temporary_name(path, hidden=False)
        self._sound_file, self._sound, self._packet = sound, iter(()), None
        self._tick = self._key = 0  # when the next frame is shown, and from when on a key frame

    def write(self, frame, result):
        """Add the drawn image of a frame; of one that can't be read, the one before it."""
        now = self._clock(frame)
        if self._start is None:
            self._start = now
        if result is not None:
            self._image = result.drawn
        if self._image is not None:
            if self.length:
                self._tick = max(round((now - self._start) * CLOCK), self._shown + 1)
            self.add(self._image)

    def _open(self):
        for sound_file in (self._sound_file, None):  # without it where it can't be in an MP4
            film = av.open(self._part, "w", format="mp4", options=FRAGMENTS)
            rate = Fraction(self._fps).limit_denominator(1001)
            self._track = film.add_stream("libx264", rate=rate, options=ENCODER)
            self._track.width, self._track.height = self._size
            self._track.pix_fmt = "yuv420p"
            self._track.codec_context.time_base = Fraction(1, CLOCK)
            if sound_file:
                self._sound = packets_of(sound_file, self._start or 0, film)
            try:
                self._packet = next(self._sound, None)
                film.start_encoding()
                return film
            except (av.FFmpegError, ValueError):
                self._sound, self.advice = iter(()), " (without its sound, which can't be written)"
                film.close()
        return None

    def _encode(self, image):
        planes = cv2.cvtColor(image, cv2.COLOR_BGR2YUV_I420)
        frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
        frame.pts, frame.time_base = self._tick, Fraction(1, CLOCK)
        frame.duration = round(CLOCK / self._fps)
        if self._tick >= self._key:
            frame.pict_type, self._key = av.video.frame.PictureType.I, self._tick + KEY
        with _as_os_error():
            self._writer.mux(self._track.encode(frame))
        self._add_sound(self._writer, until=self._tick)
        self._shown, self._tick = self._tick, self._tick + frame.duration

    def _add_sound(self, film, until):
        try:
            while self._packet and self._packet.dts * self._packet.time_base * CLOCK < until:
                film.mux(self._packet)
                self._packet = next(self._sound, None)
        except (av.FFmpegError, ValueError):  # where it is damaged; the pictures go on
            self._packet, self.advice = None, f" (with {until / CLOCK:.0f} s of its sound)"

    def _finish(self, film):
        try:
            with _as_os_error(), closing(film):
                film.mux(self._track.encode(None))
                self._add_sound(film, until=self._tick)
        finally:
            if self.length:
                self._give_name()

    def _give_name(self):
        whole = temporary_name(self.path)
        try:
            with _as_os_error():
                put_index_in_front(self._part, whole)
            os.replace(whole, self.path)
            remove(self._part)
        except OSError:  # no room for both; it plays as it is
            os.replace(self._part, self.path)
        finally:
            remove(whole)


@contextmanager
def _as_os_error():
    """Make PyAV's errors those of the system."""
    try:
        yield
    except av.FFmpegError as error:
        raise OSError(error.errno, error.strerror) from error


def packets_of(path, start, film):
    """Yield packets of a file's sound for a film that begins at a second of the file's video."""
    with av.open(path, options={"protocol_whitelist": "file"}) as file:
        picture, tracks = file.streams.best("video"), {}
        if picture and picture.start_time:
            start += float(picture.start_time * picture.time_base)
        for stream in file.streams.audio:
            if stream.codec_context is None:
                raise ValueError("an unknown kind of sound")
            copied = stream.codec.canonical_name in COPIED
            if stream.codec.name == "aac" and not stream.codec_context.extradata:
                copied = False  # it is in the packets, as in transport streams
            if copied:
                track = film.add_stream_from_template(stream)
            else:
                track = film.add_stream("aac", rate=stream.rate, layout=stream.layout)
            track.metadata.update(stream.metadata)
            tracks[stream] = track, copied
        for packet in file.demux(*tracks) if tracks else ():
            track, copied = tracks[packet.stream]
            if not copied:
                for frame in packet.decode():
                    if frame.time is None:  # damaged
                        continue
                    frame.pts = round((frame.time - start) * frame.sample_rate)
                    frame.time_base = Fraction(1, frame.sample_rate)
                    yield from track.encode(frame)
                if packet.dts is None:  # the last of a stream, which is empty
                    yield from track.encode(None)
            elif packet.dts is not None:
                packet.pts = packet.dts = packet.dts - round(start / packet.time_base)
                packet.stream = track
                yield packet


def put_index_in_front(source, target):
    """Copy a film in fragments as a usual MP4, which plays while it is still on its way."""
    options = {"movflags": "faststart"}
    with av.open(source) as parts, av.open(target, "w", format="mp4", options=options) as film:
        tracks = [film.add_stream_from_template(stream) for stream in parts.streams]
        for stream, track in zip(parts.streams, tracks, strict=True):
            track.metadata.update(stream.metadata)
        for packet in parts.demux():
            if packet.dts is not None:
                packet.stream = tracks[packet.stream.index]
                film.mux(packet)
