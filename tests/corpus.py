"""Files, networks and results from strangers: how each is made, and what has to come of it.

CORPUS, at the end, is the table. A row is a picture, video, network or output; what is expected is
`found`, `refused` (exit code 2) or `failed` (1), or the first of several that fits, where
versions of OpenCV differ. Options are in test_options.py.
"""

import functools
import os
import shlex
import shutil
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from conftest import make_network
from demo_process import CAT, ROOT
from live_helpers import ffmpeg, meanwhile
from PIL import Image

BUNDLED = ROOT / "object_detection_nanodet_2022nov.onnx"
FAST = ("--size", "64")
QUIET = ("--json", "-", "-q")


@dataclass(frozen=True)
class Outcome:
    """What a run has to end with.

    Attributes
    ----------
    code : int
        The exit code; 2 usage or input, 1 failure.
    says : str
        Part of the error's line, beside the name that is wrong.
    size : tuple of int or None
        (width, height) of every frame.
    frames : int, range or None
        Lines of JSON where stdout has them; None says nothing.
    finds : str
        Label of an object that is there; "" says nothing about objects.
    files : tuple of str or None
        Written by the run, whole; None stands for those of the row.
    """

    code: int
    says: str = ""
    size: tuple[int, int] | None = None
    frames: int | range | None = 0
    finds: str = ""
    files: tuple[str, ...] | None = ()


@dataclass(frozen=True)
class Case:
    """One row of the corpus.

    Attributes
    ----------
    kind, what : str
        Together the name of its test.
    args : tuple of str or bytes
        Of demo.py.
    make : callable
        Writes into a folder, where the demo then runs. What it returns, if anything, is a context
        manager around the run.
    outcomes : tuple of Outcome
        One has to fit.
    names : tuple of str
        What an error has to name.
    files : tuple of str
        Written by a run that ends well.
    source : str or bytes or None
        What JSON has to name.
    through : str or None
        Shell text that runs the demo as "$@".
    bomb : bool
        Whether it has to end within a second and 1 GiB.
    """

    kind: str
    what: str
    args: tuple
    make: Callable
    outcomes: tuple[Outcome, ...]
    names: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    source: str | bytes | None = None
    through: str | None = None
    bomb: bool = False

    def __str__(self):
        return f"{self.kind}: {self.what}"


# What has to come of it


def found(size=None, label="", frames=1, files=None):
    """A right result: so many frames of this size, with such an object."""
    return Outcome(0, "", size, frames, label, files)


def refused(says=""):
    """An input or option that can't be: exit code 2, and nothing is written."""
    return Outcome(2, says)


def failed(says=""):
    """Something went wrong on the way: exit code 1."""
    return Outcome(1, says, frames=None)


# Rows


def nothing(_):
    """No file, or none beside the picture."""


def shown(name):
    """A file's name as a line of the demo shows it."""
    text = os.fsdecode(name)
    text = text.encode("utf-8", "backslashreplace").decode()
    return "\\n".join(text.splitlines())


def picture(what, name, make, *outcomes, kind="picture", bomb=False):
    """`demo.py -i name`, saved as result.jpg."""
    fast = () if any(outcome.finds for outcome in outcomes) else FAST
    option = b"--input=" + name if isinstance(name, bytes) else f"--input={name}"
    return Case(
        kind,
        what,
        (option, *fast, *QUIET),
        lambda folder: make(folder / os.fsdecode(name)),
        outcomes,
        names=(shown(name),),
        files=("result.jpg",) if kind == "picture" else ("result.mp4",),
        source=name,
        bomb=bomb,
    )


def video(what, name, make, *outcomes, bomb=False):
    """`demo.py -i name`, saved as result.mp4."""
    return picture(what, name, make, *outcomes, kind="video", bomb=bomb)


def folder_of(what, make, *outcomes):
    """`demo.py -i photos --no-save`."""
    return Case("folder", what, ("-i", "photos", "--no-save", *FAST, *QUIET), make, outcomes)


def network(what, make, *outcomes, name="n.onnx", args=()):
    """`demo.py -m name` on a picture."""
    args = ("-i", os.fspath(CAT), "-m", name, "--no-save", *QUIET, *args)
    return Case("network", what, args, lambda folder: make(folder / name), outcomes, (name,))


def networks(what, make, *outcomes, name="n.onnx"):
    """The same with each engine."""
    return [
        network(f"{what}, {engine}", make, *outcomes, name=name, args=("--engine", engine))
        for engine in ("opencv", "onnxruntime")
    ]


def output(what, options, make, *outcomes, through=None, names=None):
    """`demo.py -i in.jpg` with these options, in a folder where in.jpg lies."""

    def make_both(folder):
        shutil.copy(CAT, folder / "in.jpg")
        return make(folder)

    args = (*(() if "-i" in options.split() else ("-i", "in.jpg")), *FAST, *shlex.split(options))
    if names is None:
        names = (shlex.split(options)[-1],) if options else ()
    return Case("output", what, args, make_both, outcomes, names, through=through)


# Files of any kind


a_folder = Path.mkdir


def a_pipe(path):
    """A pipe that nobody writes into: who opens it waits for ever."""
    os.mkfifo(path)


def link_to(target):
    """A symbolic link; to its own name it is a loop."""
    return lambda path: path.symlink_to(target)


def content(data):
    """A file of these bytes."""
    return lambda path: path.write_bytes(data)


empty = content(b"")


def garbage(head=b"", size=5000):
    """Random bytes, after the first bytes of a real format."""
    return content(head + np.random.default_rng(0).bytes(size))


def lying(name, make):
    """A file of this name in the folder where the demo runs."""
    return lambda folder: make(folder / name)


def copied(path):
    """A picture of a cat."""
    shutil.copy(CAT, path)


def unreadable(make):
    """A file that its owner may not read."""

    def make_unreadable(path):
        make(path)
        path.chmod(0)

    return make_unreadable


def rewritten(make, change):
    """A file whose bytes are changed."""

    def make_rewritten(path):
        make(path)
        path.write_bytes(change(path.read_bytes()))

    return make_rewritten


def shortened(make, share):
    """The first part of a file."""
    return rewritten(make, lambda data: data[: int(len(data) * share)])


# Pictures


def cat():
    """451x300, BGR, with a cat."""
    return cv2.imread(os.fspath(CAT))


def noise(width, height):
    """A picture of random pixels, its kind inferred from the name."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return written(lambda _: pixels)


def renamed(name, make):
    """A file that was made under another name, which tells its kind."""

    def make_renamed(path):
        make(path.with_name(name))
        path.with_name(name).rename(path)

    return make_renamed


def written(change, *parameters):
    """The cat, changed and written by OpenCV."""
    return lambda path: cv2.imwrite(os.fspath(path), change(cat()), parameters)


def same(image):
    """The picture as it is."""
    return image


def pillow(change=same, **options):
    """The cat, changed and written by Pillow."""

    def make(path):
        with Image.open(CAT) as opened:
            opened.load()
            change(opened).save(path, **options)

    return make


def turned():
    """The cat as a camera stores it that was held upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return pillow(lambda image: image.rotate(90, expand=True), exif=exif)


def tiff(tag, value):
    """A grey TIFF of the cat, with another value of one of its tags."""

    def make(path):
        pillow(lambda image: image.convert("L"), tiffinfo={tag: 1})(path)
        data = bytearray(path.read_bytes())
        struct.pack_into("<H", data, data.rindex(struct.pack("<HHI", tag, 3, 1)) + 8, value)
        path.write_bytes(data)

    return make


def animated(path):
    """Three frames: the cat, and twice nothing."""
    with Image.open(CAT) as first:
        more = [Image.new("RGB", first.size, colour) for colour in ("navy", "olive")]
        first.save(path, save_all=True, append_images=more, duration=100)


def gif_bomb(path):
    """A GIF of 16000x16000 in 40 bytes: a gigabyte a frame, played by FFmpeg."""
    screen = struct.pack("<6sHHBBB", b"GIF89a", 16_000, 16_000, 0x80, 0, 0) + bytes(6)
    frame = struct.pack("<BHHHHB", 0x2C, 0, 0, 16_000, 16_000, 0) + b"\x02\x02\x4c\x01\x00"
    path.write_bytes(screen + frame + b"\x3b")


def photos_of(*files):
    """A folder of these files: pairs of a name and how it is made."""

    def make(folder):
        (folder / "photos").mkdir()
        for name, make_file in files:
            make_file(folder / "photos" / name)

    return make


# Videos


def clip(*options, size="64x48", frames=10):
    """A test video, its kind inferred from the name."""
    return lambda path: path.write_bytes(clip_data(path.suffix, options, size, frames))


@functools.cache
def clip_data(ending, options, size, frames):
    """The bytes of a test video; to encode it again would take longer than the demo's run."""
    with tempfile.TemporaryDirectory() as place:
        path, source = Path(place, f"clip{ending}"), f"testsrc=size={size}:rate=10"
        ffmpeg("-f", "lavfi", "-i", source, "-frames:v", frames, *options, path)
        return path.read_bytes()


def sound(path):
    """Only sound."""
    ffmpeg("-f", "lavfi", "-i", "sine=duration=1", path)


def song_with_cover(path):
    """Sound, and a picture of what it is from."""
    tone = ("-f", "lavfi", "-i", "sine=duration=1", "-i", CAT, "-map", 0, "-map", 1)
    ffmpeg(*tone, "-c:v", "copy", "-disposition:v", "attached_pic", path)


MPEG2 = ("-c:v", "mpeg2video", "-q:v", "2", "-f", "mpegts")


def changing(path):
    """A video whose size changes after 6 frames."""
    clip(*MPEG2, frames=6)(path)
    first = path.read_bytes()
    clip(*MPEG2, frames=6, size="128x96")(path)
    path.write_bytes(first + path.read_bytes())


def recording(path):
    """A video that grows by more of the same as long as the demo runs."""
    clip(*MPEG2)(path)
    data = path.read_bytes()

    def append(ended):
        with open(path, "ab", 0) as file:
            while not ended.wait(0.5):
                file.write(data)

    return meanwhile(append)


# Networks

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4b82\nsize 3800954\n"


def bundled(path):
    """The network that works out of the box."""
    shutil.copy(BUNDLED, path)


def changed(old, new):
    """The bundled network with other bytes in the last place where some stand."""
    return rewritten(bundled, lambda data: new.join(data.rsplit(old, 1)))


def small(path, **layout):
    """A NanoDet of 64x64 and 2 classes that finds nothing."""
    make_network(path, **({"size": (64, 64), "classes": 2} | layout))


# Outputs


def locked(folder):
    """A folder that its owner may not write into, with an earlier result."""
    (folder / "locked").mkdir()
    (folder / "locked" / "old.jpg").write_bytes(b"earlier")
    (folder / "locked").chmod(0o500)


in_mp4 = lying("in.mp4", clip())
two_photos = photos_of(("a.jpg", copied), ("b.jpg", copied))


EARLIER = content(b"earlier")
BROKEN = refused("but damaged or cut off. Copy or download it again.")
NONE = refused("is neither a picture nor a video that OpenCV reads")
JP2 = refused("JPEG 2000")
DAMAGED = refused("is not an ONNX file, or is damaged")
NO_FILE = refused("no such file. Give a picture, ")
SPECIAL = refused("not a regular file")
CAT_SIZE = (451, 300)
A_CAT = found(CAT_SIZE, "cat")
ANY = found(CAT_SIZE)
ANY_SIZE = found()
MANY = range(1, 1000)
TEN = found((64, 48), frames=10)
IN_USE = refused("is in use as an input or result. Change -o.")
JSON_IN_USE = refused("is in use as an input or result. Change --json.")
NO_PICTURE = refused("unknown kind of picture. End the name in .jpg or .png.")
NO_VIDEO = refused("unknown kind of video. End the name in one of .mp4 .avi ")
INPUT_FOLDER = refused("photos: -o is the input folder. Give another folder.")


# fmt: off
CORPUS = (
    # ---- what it is, the file's name, how it is made, what comes of it
    picture("missing", "no.jpg", nothing, NO_FILE),
    picture("missing, of another kind", "folder/nö  such.mp4", nothing, NO_FILE),
    picture("no name", "", nothing, NO_FILE),
    picture("empty", "empty.jpg", empty, refused("is empty")),
    picture("empty, no ending", "empty", empty, refused("is empty")),
    picture("folder in its place", "folder.jpg", a_folder, refused("no picture in this folder")),
    picture("unreadable rights", "locked.jpg", unreadable(copied), refused("Permission denied")),
    picture("link to itself", "loop.jpg", link_to("loop.jpg"), NO_FILE),
    picture("link to nothing", "gone.jpg", link_to("nowhere.jpg"), NO_FILE),
    picture("link to a picture", "link.jpg", link_to(CAT), A_CAT),
    picture("pipe", "pipe.jpg", a_pipe, SPECIAL),
    picture("link to /dev/zero", "zero.jpg", link_to("/dev/zero"), SPECIAL),
    picture("/dev/zero", "/dev/zero", nothing, SPECIAL),
    picture("/dev/null", "/dev/null", nothing, SPECIAL),
    picture("pattern that nothing fits", "photos/*.gif", nothing, refused("no file fits")),
    picture("address of a file", "file:///etc/passwd", nothing,
            refused("unknown kind of address. Known ones: http, https, rtsp, ")),
    *(picture(f"text, {name}", name, content(b"Dear diary, nothing to see.\n" * 50), NONE)
      for name in ("diary.jpg", "diary")),

    *(picture(f"garbage, {ending}", f"x{ending}", garbage(), NONE)
      for ending in (".jpg", ".dib", "")),
    picture("garbage after JPEG's head", "x.jpg", garbage(b"\xff\xd8\xff\xe0\0\x10JFIF\0"), BROKEN),
    picture("garbage after PNG's head", "x.png", garbage(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"), BROKEN),
    picture("garbage after WebP's head", "x.webp", garbage(b"RIFF\0\x10\0\0WEBPVP8 "), BROKEN),
    picture("garbage after TIFF's head", "x.tif", garbage(b"II*\0\x08\0\0\0"), refused()),
    picture("garbage after BMP's head", "x.bmp", garbage(b"BM"), BROKEN),
    picture("garbage after JPEG 2000's head", "x.jp2", garbage(b"\0\0\0\x0cjP  \r\n"), JP2),
    picture("garbage after AVIF's head", "x.avif", garbage(b"\0\0\0 ftypavif\0\0\0\0"),
            refused("is an AVIF")),
    *(picture(f"garbage after HEIC's head, {brand}", name, garbage(b"\0\0\0\x18ftyp" + brand),
              refused("is HEIC, as phones write it, which OpenCV does not read. Convert it"))
      for brand, name in ((b"heic", "x.heic"), (b"mif1", "x.jpg"))),
    picture("PDF", "x.jpg", content(b"%PDF-1.7" + bytes(200)), refused("is a PDF, which OpenCV")),
    picture("web page", "x.jpg", content(b"<!doctype html><p>404"), refused("is a web page")),
    picture("garbage after PPM's head", "x.ppm", garbage(b"P6\n70 70\n255\n"), ANY_SIZE, BROKEN),

    picture("half a JPEG", "half.jpg", shortened(copied, 0.5), ANY),
    picture("JPEG without its last byte", "cut.jpg", shortened(copied, 0.99999), ANY),
    picture("30 bytes of a JPEG", "bit.jpg", shortened(copied, 0.0008), BROKEN),
    picture("30 bytes of a JPEG, no ending", "bit", shortened(copied, 0.0008), BROKEN),
    *(picture(f"half a {kind}", f"half.{kind.lower()}", shortened(written(same), 0.5),
              refused(f"is a {kind}, but damaged or cut off. Copy or download it again."))
      for kind in ("PNG", "WebP", "BMP")),
    picture("half a TIFF", "half.tif", shortened(written(same), 0.5), ANY, refused()),
    picture("JPEG 2000", "whole.jp2", written(same), JP2),

    *(picture(f"noise of {width}x{height}", "dot.png", noise(width, height), found((width, height)))
      for width, height in ((1, 1), (1, 900), (5000, 3), (33, 31), (20_000, 1))),
    replace(picture("70000x1, too wide for a JPEG", "wide.png", noise(70_000, 1),
                    failed("70000x1 is too large for")), names=("result.jpg",)),
    picture("bomb: PPM of 60000x60000", "bomb.ppm", content(b"P6 60000 60000 255 "),
            refused("pixels"), bomb=True),

    picture("PPM of 225 million pixels", "large.ppm", content(b"P6 15000 15000 255 "),
            refused("it has more than 200000000 pixels")),

    *(picture(f"whole{ending}", f"whole{ending}", written(same), A_CAT)
      for ending in (".bmp", ".webp", ".tif", ".ppm", ".JPEG")),
    *(picture(f"16 bits {kind}", f"deep.{kind}", written(lambda a: a.astype(np.uint16) * 257),
              A_CAT) for kind in ("png", "tif")),
    *(picture(f"{kind} of 12 bits", f"deep.{kind}", written(lambda a: a.astype(np.uint16) * 16),
              refused("has 16 bits a channel but uses only 12")) for kind in ("png", "tif")),
    *(picture(f"TIFF, tag {tag} is {value}", "x.tif", tiff(tag, value), refused(says))
      for tag, value, says in (
          (277, 5, "is a TIFF of 5 channels of 8 bits. Convert it"),
          (258, 32, "is a TIFF of 1 channels of 32 bits. Convert it"),
          (339, 2, "is a TIFF of signed numbers. Convert it"),
          (339, 3, "is a TIFF of floating-point numbers. Convert it"),
          (259, 50000, "is a TIFF of a compression that OpenCV does not read"))),
    picture("PFM", "float.pfm", written(lambda a: a.astype(np.float32) / 255),
            refused("has floating-point pixels. Convert it to 8 bits a channel.")),
    picture("grey JPEG", "grey.jpg", written(lambda a: cv2.cvtColor(a, 6)), A_CAT),
    *(picture(f"{mode}, {kind}", f"x.{kind}",
              pillow(lambda image, mode=mode: image.convert(mode)), A_CAT)
      for mode, kind in (("L", "png"), ("LA", "png"), ("RGBA", "png"), ("RGBA", "webp"),
                         ("RGBA", "tif"), ("CMYK", "jpg"), ("P", "png"))),
    picture("1 bit PNG", "bits.png", pillow(lambda image: image.convert("1")), ANY),
    picture("progressive JPEG", "later.jpg", pillow(progressive=True), A_CAT),
    *(picture(f"JPEG named {name}", name, copied, A_CAT)
      for name in ("wrong.png", "wrong.mp4", "picture")),
    picture("camera held upright", "turned.jpg", turned(), A_CAT),
    *(picture(f"name {name!a}", name, copied, ANY)
      for name in ("  a  b .jpg", "it's \"a\".jpg", "two\nlines.jpg", "🐈‍⬛ köttsjö-日本.jpg",
                   "-s.jpg", "[a]*?.jpg", "%d%s{0}.jpg", "./123", b"caf\xe9 \xff.jpg")),
    picture("name of 250 characters", "x" * 246 + ".jpg", copied, ANY),
    picture("name with a line break, bad", "two\nlines.jpg", garbage(), NONE),
    picture("name not valid UTF-8, bad", b"caf\xe9 \xff.jpg", garbage(), NONE),
    picture("name of 300 characters", "x" * 296 + ".jpg", nothing, NO_FILE),
    picture("path of 9000 characters", "x/" * 4500 + "a.jpg", nothing, NO_FILE),

    # ---- the same, of videos
    *(video(f"garbage, {ending}", f"x{ending}", garbage(), NONE)
      for ending in (".mp4", ".ts", ".mpg")),
    video("garbage after MP4's head", "x.mp4", garbage(b"\0\0\0\x18ftypmp42\0\0\0\0mp42"),
          refused("has no index")),
    video("garbage after AVI's head", "x.avi", garbage(b"RIFF\0\x10\0\0AVI LIST"), NONE),
    video("garbage after Matroska's head", "x.mkv", garbage(b"\x1a\x45\xdf\xa3"), NONE),
    video("garbage after GIF's head", "x.gif", garbage(b"GIF89a"), refused(), found(frames=MANY)),
    video("empty", "empty.mp4", empty, refused("is empty")),
    video("unreadable rights", "locked.avi", unreadable(clip()), refused("Permission denied")),
    video("name not valid UTF-8", b"\xff.mp4", garbage(), refused("not valid UTF-8")),
    video("10 frames", "clip.mp4", clip(), TEN),
    video("no ending", "clip", renamed("clip.mp4", clip()), TEN),
    video("name with a line break", "a\nb.mp4", clip(), TEN),
    video("name with a colon", "12:30.mp4", clip(), TEN),
    *(video(f"named {name}", name, renamed("clip.mp4", clip()), TEN)
      for name in ("clip.jpg", "clip.PNG")),
    *(video(f"JPEGs one after the other, {ending}", f"x{ending}", clip("-f", "mjpeg"), TEN)
      for ending in (".mjpeg", ".MJPG")),
    video("name with spaces and quotes", " it's \"a\" %d.avi", clip(), TEN),
    video("one frame", "one.mp4", clip(frames=1), found((64, 48), frames=1)),
    video("no frames", "none.mp4", clip("-t", "0"), refused()),
    video("only sound, MP4", "song.mp4", sound, refused()),
    video("only sound, WAV", "song.wav", sound, refused()),
    video("song with a cover", "song.mp3", song_with_cover, found(CAT_SIZE, "cat")),
    video("AV1", "x.mp4", clip("-c:v", "libaom-av1", "-cpu-used", "8", "-usage", "realtime"), TEN,
          refused("is AV1, which this OpenCV can't decode.")),
    video("changing size", "changes.ts", changing, found(frames=range(11, 13))),
    video("half an MP4, its index is gone", "half.mp4", shortened(clip(), 0.5),
          refused("has no index")),
    video("animated GIF", "moves.gif", animated, found(CAT_SIZE, "cat", frames=3)),
    video("half an animated GIF", "half.gif", shortened(animated, 0.3), found(frames=MANY),
          refused()),
    video("bomb: GIF of 16000x16000", "bomb.gif", gif_bomb, refused(), bomb=True),
    video("recording that goes on", "grows.ts", recording, found((64, 48), frames=MANY)),
    *(video(f"list of other files, {head}", "list.mp4", content(head + b"\nfile 'a.ts'\n"),
            refused("is a list of other files"))
      for head in (b"#EXTM3U", b"ffconcat version 1.0")),

    # ---- folders
    folder_of("one damaged among three", photos_of(
        ("a.jpg", noise(16, 12)), ("b.jpg", garbage()), ("c.jpg", noise(16, 12))),
              Outcome(1, "1 of 3 pictures can't be read", (16, 12), 3)),
    folder_of("pipes, loops, devices", photos_of(
        ("a.jpg", a_pipe), ("b.jpg", link_to("b.jpg")), ("c.jpg", link_to("/dev/zero")),
        ("d.jpg", link_to("/dev/null")), ("e.jpg", empty)),
              Outcome(1, "5 of 5 pictures can't be read", None, 5)),
    folder_of("one, damaged", photos_of(("a.jpg", garbage())),
              Outcome(1, "1 of 1 pictures can't be read", None, 1)),
    folder_of("empty", photos_of(), refused("no picture")),
    folder_of("no picture", photos_of(("notes.txt", empty)),
              refused("photos: no picture in this folder (skipped: 1 .txt). Endings read: .jpg")),
    folder_of("unreadable rights", lying("photos", lambda path: path.mkdir(0)), refused()),

    # ---- networks
    network("missing", nothing, refused("no such network")),
    network("missing, no name", nothing, refused("(empty): no such network"), name=""),
    network("empty", empty, refused("is empty")),
    network("folder in its place", a_folder, refused("not a regular file")),
    network("unreadable rights", unreadable(small), refused("Permission denied")),
    network("pipe", a_pipe, refused("not a regular file")),
    network("link to itself", link_to("n.onnx"), refused("no such network")),
    network("/dev/zero", nothing, refused("not a regular file"), name="/dev/zero"),
    network("Git LFS pointer", content(POINTER), refused("git lfs pull")),
    *(network(f"cut off at {i}/21", shortened(bundled, i / 21), DAMAGED) for i in (1, 5, 10, 20)),
    network("an operation whose name is no text", changed(b'"\x04Conv', b'"\x04Con\xf6'), DAMAGED),
    network("a node that takes what nothing makes", changed(b"\x12\x07Conv_34", b"\x12\x07Conv_3!"),
            DAMAGED),
    network("a node that takes nothing", changed(b"\n\x08Conv_1.W", b"\x1a\x08Conv_1.W"), DAMAGED),
    network("an output that nothing makes", changed(b"distribution_32", b"distr}bution_32"),
            DAMAGED),
    network("random bytes", garbage(), DAMAGED),
    network("ones", content(b"\xff" * 1000), DAMAGED),
    network("a checkpoint of PyTorch", garbage(b"PK\3\4"),
            refused("Give a network exported to ONNX, or download it again.")),
    network("a picture", copied, DAMAGED),
    *networks("name not valid UTF-8", small, refused(), found(CAT_SIZE),
              name=os.fsdecode(b"\xff.onnx")),
    *networks("zero classes", functools.partial(small, classes=0), refused()),
    *networks("nothing above the threshold", small, found(CAT_SIZE)),

    # ---- outputs: what it is, the options, what lies there, what comes of it
    output("folder made", "-o a/b/found.png", nothing, found(files=("a/b/found.png",))),
    output("strange name", "-o './out ünï  -%d[1]🐈.PNG'", nothing,
           found(files=("out ünï  -%d[1]🐈.PNG",))),
    output("name with a colon", "-q -i in.mp4 -o 12:30.mp4", in_mp4, found(files=("12:30.mp4",))),
    output("existing picture", "-o old.jpg", lying("old.jpg", EARLIER), found(files=("old.jpg",))),
    output("read-only folder", "-o locked/result.jpg", locked, failed("Permission denied")),
    output("read-only folder, earlier file", "-o locked/old.jpg", locked, failed("Permission d")),
    output("read-only folder, JSON", "--json locked/j", locked, failed("Permission denied")),
    output("read-only folder, video", "-i in.mp4 -o locked/v.mp4",
           lambda f: (in_mp4(f), locked(f))[1], refused("read-only")),
    output("full disk, JSON", "--no-save --json /dev/full", nothing, failed("No space left")),
    *(output(f"same as the input, {name}", f"-o {name}", more, IN_USE)
      for name, more in (("in.jpg", nothing), ("./in.jpg", nothing),
                         ("link.jpg", lying("link.jpg", link_to("in.jpg"))),
                         ("again.jpg", lambda f: os.link(f / "in.jpg", f / "again.jpg")))),
    output("same as the input, by its default name", "-i result.jpg",
           lying("result.jpg", copied), IN_USE),
    output("same as the input, a video", "-i in.mp4 -o in.mp4", in_mp4, IN_USE),
    *(output(f"same as the input, {source}", f"-i '{source}' -o photos", two_photos, INPUT_FOLDER)
      for source in ("photos", "photos/*.*", "photos/**/*.[jJ]*")),
    output("same as the input, a pattern here", "-i '*.jpg' -o .", nothing,
           refused(".: -o is the input folder. Give another folder.")),
    output("JSON over the input", "--json in.jpg", nothing, JSON_IN_USE),
    output("JSON over a picture of the folder", "-i photos --json photos/a.jpg", two_photos,
           JSON_IN_USE),
    output("JSON over the network", "-m own.onnx --json own.onnx",
           lying("own.onnx", bundled), JSON_IN_USE),
    output("JSON over the labels", "--labels own.txt --json own.txt",
           lying("own.txt", content(b"thing\n" * 80)), JSON_IN_USE),
    output("picture over the JSON", "-o both.jpg --json ./both.jpg", nothing, JSON_IN_USE),
    output("JSON on stdout beside an input named -", "-i ./- --json -", lying("-", copied),
           found(files=("result.jpg",))),
    output("earlier JSON, no input", "--json j -i none.jpg", lying("j", EARLIER), NO_FILE),
    output("earlier JSON, no such class", "--json j --classes unicorn", lying("j", EARLIER),
           refused()),
    output("file in place of the folder", "-o in.jpg/r.jpg", nothing, failed("can't be written"),
           refused()),
    output("JSON below a file", "--json in.jpg/no/j", nothing, failed("can't be written")),
    output("JSON without a name", "--json=", nothing, failed("(empty)"), names=()),
    output("JSON is a folder", "--json .", nothing, failed("Is a directory")),
    *(output(f"no name, {source}", f"-i {source} -o ''", more, refused("-o: is empty"), names=())
      for source, more in (("in.jpg", nothing), ("photos", two_photos), ("in.mp4", in_mp4))),
    *(output(f"no kind of picture, {name}", f"-o {name}", nothing, NO_PICTURE)
      for name in ("r.mp4", ".png", "/dev/null")),
    *(output(f"no kind of video, {name}", f"-i in.mp4 -o {name}", in_mp4, NO_VIDEO)
      for name in ("r.jpg", ".mp4")),
    output("Python drops docstrings", "--no-save -q", nothing, Outcome(0),
           through='exec "$1" -OO "${@:2}"'),
    output("stdout ends at once", "--no-save", nothing, Outcome(0),
           through='"$@" | true; exit "${PIPESTATUS[0]}"'),
    output("stdout closed", "--no-save -q", nothing, Outcome(0), through='exec "$@" >&-'),
    output("stdout closed, JSON", "--no-save --json -", nothing, failed("no standard output"),
           through='exec "$@" >&-', names=("--json",)),
    output("stdout full", "--no-save", nothing, failed("No space left"),
           through='exec "$@" >/dev/full', names=()),
    output("stderr closed", "--no-save -q", nothing, Outcome(0), through='exec "$@" 2>&-'),
    output("stdin, stdout and stderr closed", "-o r.jpg", nothing, found(files=("r.jpg",)),
           through='exec "$@" <&- >&- 2>&-'),
)
# fmt: on
