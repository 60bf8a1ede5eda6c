"""Videos that browsers, phones and QuickTime play: H.264 in MP4, with sound, written by PyAV."""

import ctypes
import math
import os
from collections import Counter
from contextlib import closing, contextmanager, suppress
from fractions import Fraction

import av
import cv2

from media.outputs import whole_file
from media.videos import LONGEST_GAP

if int(av.__version__.split(".")[0]) < 15 or "libx264" not in av.codecs_available:
    raise ImportError("this PyAV is too old, or has no libx264")

CLOCK = 120_000  # ticks a second: whole ones for milliseconds and the rates of film and television
KEY = 2 * CLOCK  # from one key frame to the next, the most that is lost when the power goes
# No frame waits for later ones. The colours are those that cv2.cvtColor computes.
ENCODER = {"preset": "superfast", "crf": "23", "bf": "0", "rc-lookahead": "0"}
ENCODER |= {"colorspace": "smpte170m", "color_range": "tv"}
# The header waits for the first packets, which tell more of some kinds of sound.
FRAGMENTS = {"movflags": "frag_keyframe+delay_moov+default_base_moof", "flush_packets": "1"}
COPIED = ("aac", "flac", "mp3", "opus")  # sound that browsers play in MP4; other becomes AAC
# The layout that FFmpeg assumes where a file only counts its channels.
LAYOUTS = {1: "mono", 2: "stereo", 3: "2.1", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}


class H264Encoder:
    """Encodes H.264 in MP4: each image at its own time, with the sound of a file.

    The last is shown for 1 / fps, but not after the second at which the input `ends`.

    While the video grows it is in fragments and plays as far as it is written, whatever ends the
    process. `finish` makes it a usual file with its index in front.
    """

    own_times = plays_unfinished = True

    def __init__(self, sound_file=None, ends=None):
        self._ends = ends
        self._sound_file, self._sound, self._packet = sound_file, iter(()), None
        self._shown = -1  # when the last image is shown, in ticks
        self._end = self._key = 0  # when it ends; from when on the next one is a key frame
        self.advice = ""

    def open(self, path, size, fps, start):
        """Begin a video, without the sound where that can't be in an MP4; False if that fails."""
        self._path, self._start, self._duration = path, start, round(CLOCK / fps)
        # An MP4 can't have all sound of these kinds as it is: no MP3 of 8 kHz.
        for copied in (COPIED, (), None) if self._sound_file else (None,):
            film = av.open(path, "w", format="mp4", options=FRAGMENTS)
            rate = Fraction(fps).limit_denominator(1001)
            track = film.add_stream("libx264", rate=rate, options=ENCODER)
            track.width, track.height = size
            track.pix_fmt = "yuv420p"
            track.codec_context.time_base = Fraction(1, CLOCK)
            self._sound = iter(())
            if copied is not None:
                self._sound = packets_of(self._sound_file, start, film, copied)
            try:
                self._packet = next(self._sound, None)
                film.start_encoding()
            except (av.FFmpegError, ValueError):
                film.close()
                continue
            self._film, self._track = film, track
            if self._sound_file and copied is None:
                self.advice = " (without its sound, which can't be written)"
            return True
        return False

    def add(self, image, second):
        """Add an image, and the sound until then."""
        tick = max(round(second * CLOCK), self._shown + 1)
        planes = cv2.cvtColor(image, cv2.COLOR_BGR2YUV_I420)
        frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
        frame.pts, frame.time_base = tick, Fraction(1, CLOCK)
        if tick >= self._key:
            frame.pict_type, self._key = av.video.frame.PictureType.I, tick + KEY
        duration = self._duration
        if self._ends is not None:
            left = round((self._ends - self._start) * CLOCK) - tick
            duration = min(duration, left) if left > 0 else duration
        self._shown, self._end = tick, tick + duration
        with _as_os_error():
            self._mux(self._track.encode(frame))
        self._add_sound(until=tick)

    def _mux(self, packets):
        for packet in packets:
            # It only counts for the last one; the others are shown until the next.
            packet.duration = self._end - self._shown
            self._film.mux(packet)

    def _add_sound(self, until):
        try:
            while self._packet and self._packet.dts * self._packet.time_base * CLOCK < until:
                self._film.mux(self._packet)
                self._packet = next(self._sound, None)
        except (av.FFmpegError, ValueError):  # where it is damaged; the images go on
            self._packet, self.advice = None, f" (with {until / CLOCK:.0f} s of its sound)"

    def finish(self):
        """End the file, and put its index in front if there is room for both."""
        try:
            with _as_os_error(), closing(self._film):
                self._mux(self._track.encode(None))
                self._add_sound(until=self._end)
        finally:
            if os.path.exists(self._path):  # or its folder has vanished, and is not made again
                with suppress(OSError), whole_file(self._path) as whole, _as_os_error():
                    put_index_in_front(self._path, whole)  # it plays without, too


@contextmanager
def _as_os_error():
    """Make PyAV's errors those of the system."""
    try:
        yield
    except av.FFmpegError as error:
        raise OSError(error.errno, error.strerror) from error


def packets_of(path, start, film, kinds):
    """Yield packets of a file's sound for a film that begins at a second of the file's video.

    Those of `kinds` are copied, others become AAC.
    """
    with av.open(path, options={"protocol_whitelist": "file"}) as file:
        picture, tracks = file.streams.best("video"), {}
        if picture and picture.start_time:
            start += float(picture.start_time * picture.time_base)
        for stream in file.streams.audio:
            if stream.codec_context is None:
                raise ValueError("an unknown kind of sound")
            copied = stream.codec.canonical_name in kinds
            if stream.codec.name == "aac" and not stream.codec_context.extradata:
                copied = False  # it is in the packets, as in transport streams
            if copied:
                track = film.add_stream_from_template(stream)
            else:
                rate = stream.rate if stream.rate in av.Codec("aac", "w").audio_rates else 48_000
                track = film.add_stream("aac", rate=rate, layout=layout_of(stream))
            track.metadata.update(stream.metadata)
            tracks[stream] = track, copied
        for packet in on_one_clock(file, picture, tracks) if tracks else ():
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


def on_one_clock(file, picture, sounds):
    """Yield the packets of sound, whose clock goes on where that of the file starts again.

    That is where recordings were joined. The pictures follow each other there, as media.videos
    reads them, and the sound keeps its place beside them.
    """
    stated = file.format.name.startswith(("mov", "matroska"))  # a gap of hours is right there
    longest = math.inf if stated else LONGEST_GAP
    offsets = {0: 0.0}  # seconds to add in each part of the file
    # Of each stream: its part; its last time as stored, and repaired; when that ends, repaired.
    parts, stored, last, ends = Counter(), {}, {}, {}
    for packet in file.demux(*sounds, *filter(None, [picture])):
        stream = packet.stream
        if packet.dts is None:  # the last one, which is empty
            if stream is not picture:
                yield packet
            continue
        seconds = float(packet.dts * packet.time_base)
        if not -1 < seconds - stored.get(stream, seconds) < longest:
            parts[stream] += 1
            if stream is picture or parts[stream] not in offsets:  # until the pictures are there
                offsets[parts[stream]] = ends[stream] - seconds
        stored[stream] = seconds
        duration = float((packet.duration or 0) * packet.time_base)
        if stream is picture and picture.average_rate:
            duration = float(1 / picture.average_rate)
        offset = offsets[parts[stream]]
        ends[stream] = seconds + offset + duration
        packet.dts += round(offset / packet.time_base)
        packet.pts = packet.dts
        if stream is not picture and packet.dts > last.get(stream, packet.dts - 1):
            last[stream] = packet.dts  # what two joined parts both contain is taken once
            yield packet


def layout_of(stream):
    """The name of a stream's layout of channels; ValueError for an order of its own."""
    layout = stream.layout
    if " channels (" in layout.name:
        # PyAV 18 frees such an order twice, as soon as one object that has it is gone: keep this
        # one for ever, and decode nothing.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(layout))
        raise ValueError(f"channels in an order that PyAV can't take: {layout.name}")
    if layout.name.endswith(" channels"):
        return LAYOUTS.get(layout.nb_channels, "stereo")
    return layout.name


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
