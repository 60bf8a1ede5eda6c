"""Make the int8 twin of a NanoDet network: fewer bytes, and less time where it pays.

    pip install numpy onnx onnxruntime opencv-python
    python tools/quantize_model.py my.onnx --images DIR

The pictures show how large each tensor becomes: some 30 like those that the network will see are
enough, and of more an even choice is used. Then the detections and times of both networks are
compared on them; tools/evaluate.py measures the AP of each. What int8 would harm, or OpenCV 5 would
compute wrong, stays in float: the network here comes to 57 % of its bytes, NanoDet-m to 72 % at 320
and 95 % at 416, NanoDet-Plus-m to 94 %. One that computes in float16 is made float32 first.

Exit code: 0 done, 1 failed, 2 usage or input, 130 Ctrl-C.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # python -I and -P know no other folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from cli import command

if __name__ == "__main__":
    command.start("quantize_model.py")

import logging
import time

import numpy as np

from cli.command import say
from cli.network import INT8, NetworkOptions
from cli.options import OneLineParser
from media.frames import SourceError
from media.outputs import whole_file
from nanodet import nms, read_model
from tools.conversion import add_conversion_flags, paths_of

WORTH = 0.9  # int8's part of float32's time from which on it is not worth it
SAME = 0.6  # IoU from which on boxes show one object, as of `NanoDet`


def compare(detectors, images):
    """Print how detections and times of the network in float32 and in int8 differ."""
    counts, same, times = [0, 0], 0, ([], [])
    for image in images:
        found = []
        for detector, milliseconds in zip(detectors, times, strict=True):
            started = time.perf_counter()
            found.append(detector.detect(image))
            milliseconds.append(1000 * (time.perf_counter() - started))
        boxes = [
            np.concatenate([getattr(each, name) for each in found])
            for name in ("xyxy", "confidence", "class_id")
        ]
        counts = np.add(counts, [len(each) for each in found])
        same += len(boxes[0]) - len(nms(*boxes, SAME))  # within a network none overlap so much
    before, after = (float(np.median(milliseconds)) for milliseconds in times)
    print(
        f"{len(images)} pictures: {counts[0]} objects in float32, {counts[1]} in int8, "
        f"{same} of them in both\n{detectors[0].engine}: {before:.1f} ms a picture in float32, "
        f"{after:.1f} in int8"
    )
    if after > WORTH * before:
        print("int8 is not worth it for this network on this machine.")


def main(argv=None):
    """Run the command line."""
    parser = OneLineParser("quantize_model.py", __doc__)
    pictures = "folder of pictures"
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help=pictures)
    add_conversion_flags(parser, "_int8")
    args = parser.parse_args(argv)
    with command.packages("onnx onnxruntime"):
        import onnx
        import onnxruntime

        from tools import int8

    logging.disable(logging.WARNING)  # the quantizer recommends what is done
    onnxruntime.set_default_logger_severity(3)
    path, output = paths_of(args, "_int8", INT8)
    engine = {"engine": "onnxruntime", "num_classes": args.num_classes}
    detector = NetworkOptions(path, None, None, engine).load()
    own_size, plus = read_model(path)[1], len(detector.head.strides) == 4
    images, model = int8.read_pictures(args.images), int8.read_network(path)
    sizes, size = [own_size] if own_size else int8.SIZES, own_size or int8.ODD
    settings = detector.keep_ratio, detector.mean, detector.std
    table = int8.calibrate(model, images, sizes, *settings)
    with whole_file(output) as part:
        onnx.save(int8.quantize(model, table, int8.left_in_float(model, size, plus), size), part)
        twin = NetworkOptions(part, None, None, engine).load()
    say(f"{output}: {output.stat().st_size} bytes, {path.stat().st_size} before")
    compare((detector, twin), images)


if __name__ == "__main__":
    sys.exit(command.run("quantize_model.py", main, (SourceError,)))
