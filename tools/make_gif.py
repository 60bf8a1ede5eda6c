"""Make example_outputs/WebCamR.gif: the live view, as the demo's window shows it.

pip install pillow
python tools/make_gif.py example_inputs/street.mp4
"""

# ruff: noqa: E402
import command

command.start("make_gif.py")
import os
import sys
import time
from itertools import islice

import cv2
from command import ROOT, InputError

from media.drawing import draw, draw_status
from media.frames import SourceError
from media.outputs import whole_file
from media.sources import open_source
from media.window import FrameRate
from nanodet import COCO_CLASSES, NanoDet
from options import BUNDLED, OneLineParser, whole_number

with command.libraries("pillow"):
    from PIL import Image

WIDTH = 480  # pixels of the film
COLOURS = 96
OUTPUT = ROOT / "example_outputs" / "WebCamR.gif"


def main(argv=None):
    """Run the command line."""
    parser = OneLineParser(prog="make_gif.py", description="Film the live view of a clip as a GIF.")
    parser.add_argument("clip", help="video file")
    parser.add_argument("--first", type=whole_number(0), default=0, help="frame to begin with")
    parser.add_argument("--count", type=whole_number(1), default=60, help="frames to film")
    parser.add_argument("-o", "--output", default=OUTPUT, help="GIF file (default: the example)")
    args = parser.parse_args(argv)
    with open_source(args.clip) as source:
        if not source.moving or source.live:
            raise InputError(f"{args.clip}: is not a video file.")
        views = list(film(source, args.first, args.count))
    if not views:
        raise InputError(f"{args.clip}: has no frame {args.first}. Give a smaller --first.")
    palette = views[0].quantize(COLOURS, method=Image.Quantize.MEDIANCUT)
    views = [view.quantize(palette=palette, dither=Image.Dither.NONE) for view in views]
    pace = {"duration": round(1000 / source.fps), "loop": 0}
    with whole_file(args.output) as part:
        views[0].save(part, "GIF", save_all=True, append_images=views[1:], **pace)
    print(f"{args.output}: {len(views)} frames, {os.path.getsize(args.output) / 1e6:.1f} MB")


def film(source, first, count):
    """The live view of `count` frames of a video, from frame `first` on."""
    detector, rate = NanoDet(BUNDLED), FrameRate()
    for frame in islice(source, first, first + count):
        started = time.perf_counter()
        found = detector.detect(frame.image)
        milliseconds = 1000 * (time.perf_counter() - started)
        drawn = draw(frame.image, found, COCO_CLASSES)
        view = draw_status(drawn, f"{rate.tick():.1f} FPS, network {milliseconds:.1f} ms")
        height = round(WIDTH * view.shape[0] / view.shape[1])
        small = cv2.resize(view, (WIDTH, height), interpolation=cv2.INTER_AREA)
        yield Image.fromarray(cv2.cvtColor(small, cv2.COLOR_BGR2RGB))


if __name__ == "__main__":
    sys.exit(command.run(main, usage=(SourceError,)))
