"""Make example_outputs/WebCamR.gif: the live view, as the demo's window shows it.

pip install pillow
python tools/make_gif.py vtest.avi --first 200 --count 60
"""

import argparse
import os
import sys
import time
from pathlib import Path

import cv2
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from media.drawing import draw, draw_status  # noqa: E402
from media.sources import SourceError, open_source  # noqa: E402
from media.window import FrameRate  # noqa: E402
from nanodet import COCO_CLASSES, NanoDet  # noqa: E402

WIDTH = 480  # pixels of the film
COLOURS = 96
OUTPUT = ROOT / "example_outputs" / "WebCamR.gif"


def main(argv=None):
    """Run the command line; gives the exit code."""
    parser = argparse.ArgumentParser(description="Film the live view of a clip as a GIF.")
    parser.add_argument("clip", help="video file")
    parser.add_argument("--first", type=int, default=0, help="frame to begin with")
    parser.add_argument("--count", type=int, default=60, help="frames to film")
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT)
    args = parser.parse_args(argv)
    detector = NanoDet(ROOT / "object_detection_nanodet_2022nov.onnx")
    views, rate = [], FrameRate()
    try:
        with open_source(args.clip) as source:
            for frame in source:
                if frame.index < args.first:
                    continue
                if len(views) == args.count:
                    break
                started = time.perf_counter()
                found = detector.detect(frame.image)
                milliseconds = 1000 * (time.perf_counter() - started)
                drawn = draw(frame.image, found, COCO_CLASSES)
                view = draw_status(drawn, f"{rate.tick():.1f} FPS, network {milliseconds:.1f} ms")
                height = round(WIDTH * view.shape[0] / view.shape[1])
                small = cv2.resize(view, (WIDTH, height), interpolation=cv2.INTER_AREA)
                views.append(Image.fromarray(cv2.cvtColor(small, cv2.COLOR_BGR2RGB)))
    except SourceError as error:
        print(f"make_gif.py: error: {error}", file=sys.stderr)
        return 2
    if not views:
        print(f"make_gif.py: error: {args.clip}: has no frame {args.first}", file=sys.stderr)
        return 2
    palette = views[0].quantize(COLOURS, method=Image.Quantize.MEDIANCUT)
    films = [view.quantize(palette=palette, dither=Image.Dither.NONE) for view in views]
    part = args.output.with_suffix(".part.gif")
    films[0].save(
        part, save_all=True, append_images=films[1:], duration=round(1000 / source.fps), loop=0
    )
    os.replace(part, args.output)
    print(f"{args.output}: {len(films)} frames, {args.output.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
