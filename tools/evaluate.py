"""Measure a NanoDet network's COCO AP and AR.

    pip install pycocotools matplotlib
    python tools/evaluate.py --annotations instances.json --images DIR
    python tools/evaluate.py --annotations instances.json --images DIR --size 512 --rect
    python tools/evaluate.py --annotations instances.json --images DIR --sweep --beside plus.onnx

It prints tables of AP and AR, and of each class; metrics.json, predictions.json in COCO's format
and precision_recall.png go to --out. --sweep measures AP against time at several sizes; of the
network here on each engine installed and in int8, too, unless --engine is given.

The network's classes (COCO's, or those of --labels) and the annotations' categories are matched by
name, whether in capitals or not; only those that both know are scored. Without --labels, a network
with another number of classes than COCO is taken to be trained on these categories, in the order of
their ids. Boxes that are missing are taken from polygons.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # python -I and -P know no other folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from cli import command

if __name__ == "__main__":
    command.start("evaluate.py")
import contextlib
import functools
import io
import json
import math
import os
import time
from collections import Counter
from dataclasses import dataclass, replace

import cv2
import numpy as np

from cli.command import UsageError, progress_bar, say, tell
from cli.network import (
    BUNDLED,
    ENGINES,
    INT8,
    NetworkOptions,
    find_model,
    installed_engines,
    wrong_number,
)
from cli.options import OneLineParser, add_network_options, whole_number
from cli.text import read_text
from media.frames import SourceError
from media.outputs import whole_file
from media.pictures import read_file
from nanodet import ModelError, read_model
from tools.markdown import markdown

LONGEST_ANNOTATIONS = 2 << 30  # bytes; COCO's longest have 0.45 GB, those of larger sets over 1
MAX_DETECTIONS = 100  # a picture, as COCO counts
SWEEP_SIZES = (320, 416, 480, 512, 544, 640, 768)
CONFIDENCE = 0.05  # AP needs the uncertain detections, too
SETTINGS = ("confidence", "nms", "agnostic_nms", "size", "rect", "augment", "resize")
SETTINGS += ("centre_offset", "mean", "std", "num_classes", "classes")
# Rows of OpenCV Zoo's table: area, IoU, AP; area, detections a picture, AR.
SUMMARY = (
    ("all", "0.50:0.95", "AP", "all", "1", "AR 1"),
    ("all", "0.50", "AP50", "all", "10", "AR 10"),
    ("all", "0.75", "AP75", "all", "100", "AR 100"),
    ("small", "0.50:0.95", "AP small", "small", "100", "AR small"),
    ("medium", "0.50:0.95", "AP medium", "medium", "100", "AR medium"),
    ("large", "0.50:0.95", "AP large", "large", "100", "AR large"),
)
METRICS = [row[2] for row in SUMMARY] + [row[5] for row in SUMMARY]  # in the order of COCOeval


def whole(value):
    """A whole number that was written as such, or as 40.0 or "40", as converters do."""
    if type(value) is float and value.is_integer() or type(value) is str and value.isdecimal():
        return int(value)
    if type(value) is not int:
        raise TypeError
    return value


def text(value):
    """Text that is not empty."""
    if type(value) is not str or not value:
        raise TypeError
    return value


def name_below(value):
    """The name of a file that lies below a folder; on Windows `\\` may part its folders."""
    path = Path(text(value).replace("\\", "/"))
    if path.anchor or ".." in path.parts:
        raise ValueError
    return value


def box(value):
    """Left, top, width and height, or those of polygons: lists of x, y, x, y ..."""
    numbers = value
    if isinstance(value[0], list):
        numbers = [number for polygon in value for number in polygon]
        x, y = numbers[::2], numbers[1::2]
        value = [min(x), min(y), max(x) - min(x), max(y) - min(y)]
    if len(value) != 4 or not all(map(math.isfinite, numbers)) or min(value[2:]) < 0:
        raise ValueError
    return value


def area(value):
    """A number of pixels."""
    if not value >= 0:
        raise ValueError
    return value


def crowd(value):
    """Whether a box is around many objects."""
    if value not in (0, 1):
        raise ValueError
    return value


RULES = (  # section of an instances file, field of its entries, what it must be, what reads it
    ("images", "id", "a whole number", whole),
    ("images", "file_name", "the name of a file below --images", name_below),
    ("categories", "id", "a whole number", whole),
    ("categories", "name", "text", text),
    ("annotations", "image_id", "a whole number", whole),
    ("annotations", "category_id", "a whole number", whole),
    ("annotations", "bbox", "left, top, width and height, nor are there polygons", box),
    ("annotations", "area", "a number", area),
    ("annotations", "iscrowd", "0 or 1", crowd),
)
OPTIONAL = ("area", "iscrowd")


def read_annotations(path):
    """Annotations in COCO format as COCO; an UsageError names the entry at fault."""
    from pycocotools.coco import COCO

    text = read_text(path, LONGEST_ANNOTATIONS, path)
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: is not JSON: {error}.") from error
    for section, field, kind, read in RULES:
        entries = data.get(section) if isinstance(data, dict) else None
        if not (isinstance(entries, list) and entries):
            raise UsageError(f"{path}: lists no {section}. Give a COCO instances file.")
        for i, entry in enumerate(entries):
            fields = entry if isinstance(entry, dict) else {}
            if field in OPTIONAL and field not in fields:
                continue
            value = fields.get(field)
            outlined = field == "bbox" and not value
            try:
                fields[field] = read(fields["segmentation"] if outlined else value)
            except (LookupError, OverflowError, TypeError, ValueError) as error:
                where = f"{path}: {section}[{i}]"
                raise UsageError(f"{where}: {field} is {value!r:.60}, not {kind}.") from error
    for section, field in (("images", "id"), ("categories", "id"), ("categories", "name")):
        for value, times in Counter(entry[field] for entry in data[section]).most_common(1):
            if times > 1:
                raise UsageError(f"{path}: {times} {section} have the same {field}, {value!r}.")
    for i, box in enumerate(data["annotations"]):
        box["id"] = i + 1  # COCOeval takes a match with box number 0 for none
        box.setdefault("iscrowd", 0)
        box.setdefault("area", box["bbox"][2] * box["bbox"][3])
    coco = COCO()  # COCO(path) would read the file again, in the system's encoding
    coco.dataset = data
    with quiet():
        coco.createIndex()
    return coco


def quiet():
    """A context without pycocotools' prints."""
    return contextlib.redirect_stdout(io.StringIO())


def below(folder, name):
    """The path of a picture; where no file is called so, `\\` in its name parts folders."""
    path = Path(folder, name)
    return path if path.is_file() else Path(folder, name.replace("\\", "/"))


def find_pictures(coco, folder, limit):
    """The path of each picture by its id, of the `limit` smallest ids, in their order."""
    files = {id_: below(folder, coco.imgs[id_]["file_name"]) for id_ in sorted(coco.imgs)[:limit]}
    missing = [path for path in files.values() if not path.is_file()]
    if missing:
        raise UsageError(
            f"{missing[0]}: no such picture ({len(missing)} of {len(files)} are missing). "
            "Give the folder of the annotations' pictures as --images."
        )
    return files


warn = functools.cache(tell)  # a sweep finds the same again and again


def match_classes(coco, files, network, options):
    """category_id by class_id of the classes that both the network and the annotations know."""
    ids = {coco.cats[id_]["name"]: id_ for id_ in sorted(coco.cats)}
    labels, wanted = options.names_for(network)
    labels = labels or tuple(ids)
    if fault := wrong_number(labels, network):
        raise UsageError(fault)
    wanted = range(len(labels)) if wanted is None else wanted
    spelt = Counter(name.casefold() for name in ids)
    # In other letters only where no other class or category could be meant.
    loose = {n.casefold(): id_ for n, id_ in ids.items() if n not in labels}
    loose = {name: id_ for name, id_ in loose.items() if spelt[name] == 1}
    matched = [ids.get(label, loose.get(label.casefold())) for label in labels]
    categories = {i: matched[i] for i in wanted if matched[i] is not None}
    if not categories:
        raise UsageError(
            f"no class to score is a category of the annotations, which are {shorten(ids)}. "
            "Give the names of the network's classes with --labels FILE."
        )
    if unknown := [name for name, id_ in ids.items() if id_ not in matched]:
        warn(f"not scored, as the network does not know them: {shorten(unknown)}")
    boxes = coco.loadAnns(coco.getAnnIds(list(files), list(categories.values())))
    if all(box["iscrowd"] for box in boxes):
        kind = "only crowds" if boxes else "no box"
        raise UsageError(f"the {len(files)} pictures have {kind} of the classes to score: no AP.")
    return categories


def shorten(names):
    """The first few of some names, for a message."""
    names = list(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def read_as_stored(path):
    """Pixels in BGR as stored: COCO's boxes ignore EXIF's orientation."""
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    with contextlib.suppress(cv2.error):  # of an empty file, or of too many pixels
        if (image := cv2.imdecode(read_file(path), flags)) is not None:
            return image
    raise UsageError(f"{path}: is not a picture that OpenCV reads.")


def coco_results(found, image_id, categories):
    """Detections in COCO's results format, of scored classes, most confident first."""
    return [
        {
            "image_id": image_id,
            "category_id": categories[class_id],
            "bbox": [round(float(v), 3) for v in (*xyxy[:2], *(xyxy[2:] - xyxy[:2]))],
            "score": round(confidence, 6),
        }
        for xyxy, confidence, class_id in found
        if class_id in categories
    ][:MAX_DETECTIONS]


@dataclass(frozen=True, eq=False)
class Score:
    """What a network reached."""

    results: list  # detections in COCO's results format
    evaluation: object  # COCOeval: evaluated, accumulated and summarised
    stats: dict  # value of each of METRICS; -1 where there is no box to find
    milliseconds: float  # median time of `NanoDet.detect`
    engine: str  # what ran the network


def score(coco, files, options):
    """Detect on all pictures, files by image id, and compare with the annotations."""
    network = options.load()
    categories = match_classes(coco, files, network, options)
    results, times = [], []
    for image_id, path in progress_bar(iterable=files.items(), desc=network.engine):
        image = read_as_stored(path)
        started = time.perf_counter()
        found = network.detect(image)
        times.append(1000 * (time.perf_counter() - started))
        results += coco_results(found, image_id, categories)
    evaluation = coco_eval(coco, files, categories.values(), results)
    stats = dict(zip(METRICS, map(float, evaluation.stats), strict=True))
    return Score(results, evaluation, stats, float(np.median(times)), network.engine)


def coco_eval(coco, image_ids, category_ids, results):
    """COCOeval of results, on some pictures and categories only."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with quiet():
        # loadRes adds to the results, and fails where nothing was found.
        found = coco.loadRes([dict(result) for result in results]) if results else COCO()
        evaluation = COCOeval(coco, found, "bbox")
        evaluation.params.imgIds = sorted(image_ids)
        evaluation.params.catIds = sorted(category_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def class_ap(evaluation):
    """AP50 and AP of each category by name, None where it has no box."""
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # (IoUs, recalls, categories)
    values = {}
    for category_id, curve in zip(evaluation.params.catIds, precision.T, strict=True):
        ap50, ap = curve[:, 0].mean(), curve.mean()
        found = {"AP50": float(ap50), "AP": float(ap)}
        name = evaluation.cocoGt.cats[category_id]["name"]
        values[name] = found if curve.max() > -1 else dict.fromkeys(found)
    return values


def number(value, form):
    """A figure as text; COCOeval's -1 and our None mean that there is no box to find."""
    return "-" if value is None or value < 0 else form.format(value)


def summary_table(stats):
    """AP and AR as OpenCV Zoo's README has them."""
    rows = [
        (area, iou, number(stats[ap], "{:.4f}"), area, boxes, number(stats[ar], "{:.4f}"))
        for area, iou, ap, _, boxes, ar in SUMMARY
    ]
    return markdown(("area", "IoU", "Average Precision", "area", "boxes", "Average Recall"), rows)


def class_table(classes):
    """AP50 and AP of each class in percent, two classes a row."""
    cells = [
        (name, *(number(value and 100 * value, "{:.1f}") for value in values.values()))
        for name, values in classes.items()
    ]
    cells += [("", "", "")] * (len(cells) % 2)
    rows = [left + right for left, right in zip(cells[::2], cells[1::2], strict=True)]
    return markdown(("class", "AP50", "mAP") * 2, rows)


def chart(width, height):
    """An empty chart of this size in inches, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    return figure, axes


def save(figure, path):
    """Write a chart, whole or not at all."""
    with whole_file(path) as part:
        figure.savefig(part, dpi=120, bbox_inches="tight")


def write(path, text):
    """Write text, whole or not at all."""
    with whole_file(path) as part:
        Path(part).write_text(text, encoding="utf-8")


def draw_curves(evaluation):
    """Precision against recall at each IoU, the mean of all classes."""
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    precision = precision[:, :, precision.max(axis=(0, 1)) > -1].mean(axis=2)
    figure, axes = chart(7, 5)
    for iou, curve in zip(evaluation.params.iouThrs, precision, strict=True):
        axes.plot(evaluation.params.recThrs, curve, label=f"IoU {iou:.2f}, AP {curve.mean():.3f}")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1))
    axes.legend(fontsize=8)
    return figure


def draw_sweep(points, pictures):
    """AP against time, a colour for each name; sizes are written once for each network."""
    figure, axes = chart(8, 7)
    named = set()
    for colour, name in enumerate(dict.fromkeys(name for name, _ in points)):
        style = {"color": f"C{colour}", "label": name}
        network = "" if name.partition(",")[0] in ENGINES else name
        own = {key: (p.milliseconds, p.stats["AP"]) for (n, key), p in points.items() if n == name}
        for kind, mark in (("square", "o-"), ("rect", "s--"), ("", "*")):
            line = {key: own.pop(key) for key in [*own] if key.endswith(kind)}
            if line:
                axes.plot(*zip(*line.values(), strict=True), mark, **style)
            for key, place in line.items():
                text = key.removesuffix(f" {kind}") if kind else ""
                if text and (network, text) not in named:
                    axes.annotate(text, place, (0, 7), textcoords="offset points", fontsize=8)
                    named.add((network, text))
            style.pop("label", None)
    axes.set(xlabel="inference, ms a picture (logarithmic)", ylabel=f"AP on {pictures} pictures")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.margins(0.08)
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.1), "ncols": 3, "fontsize": 8}
    axes.legend(title="solid: square, dashed: --rect, star: --augment", **below)
    return figure


def run_one(coco, files, args, options):
    """Evaluate one network: print both tables, write figures, detections and curves."""
    reached = score(coco, files, options)
    settings = {"model": os.path.basename(options.model)}
    settings |= {name: getattr(args, name) for name in SETTINGS}
    about = settings | {"engine": reached.engine, "milliseconds": reached.milliseconds}
    classes = class_ap(reached.evaluation)
    metrics = {"images": len(files), "settings": about, **reached.stats, "classes": classes}
    out = Path(args.out)
    write(out / "predictions.json", json.dumps(reached.results))
    write(out / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    save(draw_curves(reached.evaluation), out / "precision_recall.png")
    used = (f"{k} {v}" for k, v in settings.items() if v is not None and v is not False)
    say(", ".join(used))
    say(f"{reached.engine}: {len(files)} pictures, {reached.milliseconds:.1f} ms each")
    print(f"\n{summary_table(reached.stats)}\n{class_table(classes)}")
    say(f"Written to {out}")


def run_sweep(coco, files, args, options):
    """Evaluate networks at several sizes; the one here on each engine installed, and in int8."""
    sizes = {
        kind: {
            f"{size} {kind}": {"input_size": (size, size), "rect": kind == "rect"}
            for size in SWEEP_SIZES
        }
        for kind in ("square", "rect")
    }
    inputs = sizes["square"] | sizes["rect"] | {"--augment": {"rect": True, "augment": True}}
    lines = {options.settings["engine"]: (options, inputs)}
    if os.path.samefile(options.model, BUNDLED) and not args.engine:
        for engine in installed_engines()[1:]:
            other = replace(options, settings=options.settings | {"engine": engine})
            lines[engine] = other, inputs
            if engine == "onnxruntime":
                lines["onnxruntime, int8"] = replace(other, model=INT8), inputs
    for path in args.beside:
        beside = replace(options, model=find_model(path))
        any_size = read_model(beside.model)[1] is None
        # Stretched, as NanoDet-Plus was trained: --rect would letterbox.
        own = sizes["square"] | {"--augment": {"augment": True}} if any_size else {"its size": {}}
        name = Path(beside.model).stem
        lines[path if name in lines else name] = beside, own
    points = {}
    for name, (line, own) in lines.items():
        for key, more in own.items():
            points[name, key] = score(coco, files, replace(line, settings=line.settings | more))
    rows = []
    for key in dict.fromkeys(key for _, key in points):
        pair = [points.get((name, key)) for name in lines]
        cells = [
            (number(p.stats["AP"], "{:.4f}"), f"{p.milliseconds:.1f}") if p else ("-", "-")
            for p in pair
        ]
        rows.append((key, *sum(cells, ())))
    table = markdown(("input", *sum(((f"AP, {name}", "ms") for name in lines), ())), rows)
    out = Path(args.out)
    write(out / "sweep.md", table)
    save(draw_sweep(points, len(files)), out / "sweep.png")
    print(f"{len(files)} pictures\n\n{table}")
    say(f"Written to {out}")


def parse(argv):
    """The options; argparse exits with 2 where one is wrong."""
    parser = OneLineParser("evaluate.py", __doc__)
    add = parser.add_argument
    instances = "COCO instances file, for example instances_val2017.json"
    add("--annotations", required=True, metavar="FILE", help=instances)
    add("--images", required=True, metavar="DIR", help="folder of its pictures")
    first = "only the first N pictures, by id (default all)"
    add("--limit", type=whole_number(1), metavar="N", help=first)
    out = "folder for figures and charts (default %(default)s)"
    add("--out", default="results/evaluate", metavar="DIR", help=out)
    beside = "further networks to show with --sweep, at these sizes where they run at any"
    add("--beside", nargs="+", default=[], metavar="FILE", help=beside)
    sweep = "AP against time at sizes 320 to 768, square and rect, and with --augment"
    add("--sweep", action="store_true", help=sweep)
    add_network_options(parser, CONFIDENCE)
    args = parser.parse_args(argv)
    if args.sweep and (args.size or args.rect):
        parser.error("--sweep: tries sizes, square and rect, itself. Leave out --size and --rect")
    return args


def main(argv=None):
    """Run the command line."""
    args = parse(argv)
    with command.packages("pycocotools matplotlib"):
        import matplotlib.figure  # noqa: F401  before anything is measured
        import pycocotools.cocoeval  # noqa: F401
    if not args.out or (os.path.exists(args.out) and not os.path.isdir(args.out)):
        raise UsageError(f"--out {args.out or '(empty)'}: is not a folder.")
    options = NetworkOptions.of(args)
    coco = read_annotations(args.annotations)
    files = find_pictures(coco, args.images, args.limit)
    os.makedirs(args.out, exist_ok=True)
    run = run_sweep if args.sweep else run_one
    run(coco, files, args, options)


if __name__ == "__main__":
    sys.exit(command.run("evaluate.py", main, usage=(SourceError, ModelError)))
