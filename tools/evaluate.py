"""Measure a NanoDet network's COCO AP and AR, and compare networks or settings.

    pip install pycocotools matplotlib
    python tools/evaluate.py --annotations instances.json --images DIR
    python tools/evaluate.py --annotations instances.json --images DIR --size 512 --rect
    python tools/evaluate.py --annotations instances.json --images DIR --compare --size 512
    python tools/evaluate.py --annotations instances.json --images DIR --sweep

Whatever follows --compare is the second set of settings; those not named there are as in the first.
Run again after a break, it goes on where it stopped: predictions are kept, one file for each
network and settings. Exit code: 0 done, 1 failed, 2 usage or input, 130 interrupted.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import sys
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import nanodet  # noqa: E402
from nanodet import COCO_CLASSES, NanoDet  # noqa: E402

try:
    from matplotlib.figure import Figure
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
    from tqdm import tqdm
except ImportError as missing:
    sys.exit(
        f"evaluate.py: error: {missing.name} is not installed. "
        "Run: pip install pycocotools matplotlib tqdm"
    )

MAX_DETECTIONS = 100  # a picture, as COCO counts
RESAMPLES = 300  # of the bootstrap
SWEEP_SIZES = (320, 416, 480, 512, 544, 640)
# What COCOeval.stats holds: metric, area, IoU, detections a picture.
STATS = (
    ("AP", "all", "0.50:0.95", 100),
    ("AP50", "all", "0.50", 100),
    ("AP75", "all", "0.75", 100),
    ("AP small", "small", "0.50:0.95", 100),
    ("AP medium", "medium", "0.50:0.95", 100),
    ("AP large", "large", "0.50:0.95", 100),
    ("AR 1", "all", "0.50:0.95", 1),
    ("AR 10", "all", "0.50:0.95", 10),
    ("AR 100", "all", "0.50:0.95", 100),
    ("AR small", "small", "0.50:0.95", 100),
    ("AR medium", "medium", "0.50:0.95", 100),
    ("AR large", "large", "0.50:0.95", 100),
)


class InputError(ValueError):
    """Annotations, pictures and network do not fit each other; the message says how."""


@dataclass(frozen=True)
class Settings:
    """What decides about the detections: the options of the same names."""

    model: Path = ROOT / "object_detection_nanodet_2022nov.onnx"
    confidence: float = 0.05
    nms: float = 0.6
    size: tuple[int, int] | None = None
    rect: bool = False
    augment: bool = False
    resize: str | None = None
    engine: str = "opencv"
    num_classes: int | None = None

    def detector(self):
        """The network, ready to run with these settings."""
        return NanoDet(
            self.model,
            self.confidence,
            self.nms,
            input_size=self.size,
            rect=self.rect,
            augment=self.augment,
            num_classes=self.num_classes,
            keep_ratio=None if self.resize is None else self.resize == "letterbox",
            engine=self.engine,
        )

    def __str__(self):
        size = "own size" if self.size is None else "x".join(map(str, self.size))
        flags = [name for name in ("rect", "augment") if getattr(self, name)]
        shown = [self.model.name, size, *flags, *([self.resize] if self.resize else [])]
        return ", ".join([*shown, f"confidence {self.confidence}, NMS {self.nms}", self.engine])


@dataclass(frozen=True, eq=False)
class Dataset:
    """Pictures and what people saw on them.

    Attributes
    ----------
    coco : COCO
        Annotations.
    folder : Path
    files : dict of int to Path
        The picture of each id to evaluate, in the order of the ids.
    """

    coco: COCO
    folder: Path
    files: dict[int, Path]


def index(images, categories, annotations):
    """A COCO object made without its prints, boxes numbered from 1.

    COCOeval takes a match with box number 0 for none, so the file's own numbers are not used.
    """
    coco = COCO()
    annotations = [{**a, "id": number} for number, a in enumerate(annotations, 1)]
    coco.dataset = {"images": images, "categories": categories, "annotations": annotations}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def read_box(box):
    """An annotation with all that COCOeval wants, a ValueError where it makes no sense."""
    x, y, width, height = map(float, box["bbox"])
    if not (width >= 0 and height >= 0):
        raise ValueError(f"a box is {width} wide and {height} high")
    return {
        "image_id": box["image_id"],
        "category_id": box["category_id"],
        "bbox": [x, y, width, height],
        "area": float(box.get("area", width * height)),
        "iscrowd": int(box.get("iscrowd", 0)),
    }


def read_dataset(path, folder, limit=None):
    """Read annotations in COCO format and find their pictures.

    Parameters
    ----------
    path : Path
        For example instances_val2017.json.
    folder : Path
        Where the pictures are; it may hold others, too.
    limit : int, optional
        Take only so many pictures, those with the smallest ids.

    Returns
    -------
    Dataset

    Raises
    ------
    InputError
        If the file is damaged, has no box for these pictures, or a picture is missing.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        names = {image["id"]: image["file_name"] for image in data["images"]}
        known = {category["id"]: category["name"] for category in data["categories"]}
        ids = sorted(names)[:limit]
        boxes = [read_box(box) for box in data["annotations"]]
        unknown = {box["category_id"] for box in boxes} - set(known)
        files = {id_: folder / names[id_] for id_ in ids}
        # The file may hold boxes of images that it does not list.
        boxes = [box for box in boxes if box["image_id"] in files]
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}. Give a COCO instances file.") from error
    except KeyError as error:
        raise InputError(f"{path}: no COCO instances file, {error} is missing.") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: no COCO instances file: {error}") from error
    if len(names) < len(data["images"]):
        raise InputError(f"{path}: several images have the same id.")
    if unknown:
        raise InputError(f"{path}: a box has category_id {min(unknown)}, which no category has.")
    if all(box["iscrowd"] for box in boxes):
        raise InputError(f"{path}: no box for its {len(ids)} images, so there is no AP.")
    absent = [file for file in files.values() if not file.is_file()]
    if absent:
        raise InputError(
            f"{absent[0]}: no such picture ({len(absent)} of {len(files)} are missing). "
            "Give the folder of the annotations' pictures as --images."
        )
    images = [image for image in data["images"] if image["id"] in files]
    return Dataset(index(images, data["categories"], boxes), folder, files)


def category_ids(coco, num_classes):
    """The annotations' category of each class of the network.

    Parameters
    ----------
    coco : COCO
    num_classes : int
        80: classes are COCO's, found by name, and annotations may have fewer.
        Another number: classes are the annotations' categories by id, as in training.

    Returns
    -------
    dict of int to int
        category_id by class_id.

    Raises
    ------
    InputError
        If a category's name or the number of categories is not the network's.
    """
    names = {coco.cats[id_]["name"]: id_ for id_ in sorted(coco.cats)}
    if num_classes != len(COCO_CLASSES):
        if len(names) != num_classes:
            raise InputError(
                f"the network has {num_classes} classes, the annotations {len(names)} categories."
            )
        return dict(enumerate(names.values()))
    unknown = [name for name in names if name not in COCO_CLASSES]
    if unknown:
        raise InputError(
            f"category {unknown[0]!r} is none of the network's 80 classes ({len(unknown)} such). "
            "Name the annotations' categories as COCO does."
        )
    return {COCO_CLASSES.index(name): id_ for name, id_ in names.items()}


def read_picture(path):
    """Pixels in BGR as stored: COCO's boxes ignore EXIF's orientation; any file name works."""
    data = np.fromfile(path, np.uint8)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(data, flags) if data.size else None
    if image is None:
        raise InputError(f"{path}: no picture that OpenCV can read.")
    return image


def coco_results(found, image_id, categories):
    """Detections in COCO's results format, of annotated classes, most confident first."""
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


def hash_of(path):
    """sha256 of a file, in hexadecimal."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def read_kept(path):
    """Pictures done in an earlier run, by id; a line torn off at the end is cut away."""
    kept, good = {}, 0
    data = path.read_bytes() if path.exists() else b""
    for line in data.splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        try:
            picture = json.loads(line)
            kept[picture["image_id"]] = picture
        except (ValueError, KeyError, TypeError):
            break
        good += len(line)
    if good < len(data):
        os.truncate(path, good)
    return kept


def predict(dataset, settings, out):
    """Detect on all pictures that no earlier run with the same settings has done.

    Parameters
    ----------
    dataset : Dataset
    settings : Settings
    out : Path
        Folder of the kept predictions: a file for each network and settings, a line for
        each picture.

    Returns
    -------
    results : list of dict
        In COCO's results format.
    about : dict
        The settings, what ran the network, and the median time of `NanoDet.detect`.
    """
    detector = settings.detector()
    categories = category_ids(dataset.coco, detector.head.num_classes)
    about = {**asdict(settings), "model": settings.model.name, "engine": detector.engine}
    # Other code, network, folder or categories: other detections, kept apart.
    told = {**about, "folder": dataset.folder.resolve(), "categories": categories}
    told |= {"network": hash_of(settings.model), "code": hash_of(nanodet.__file__)}
    told = json.dumps(told, default=str).encode()
    kept_path = out / f"predictions-{hashlib.sha256(told).hexdigest()[:12]}.jsonl"
    kept = read_kept(kept_path)
    todo = {
        id_: path
        for id_, path in dataset.files.items()
        if kept.get(id_, {}).get("file") != str(path.relative_to(dataset.folder))
    }
    done = len(dataset.files) - len(todo)
    bar = tqdm(todo.items(), str(settings), len(dataset.files), initial=done, disable=None)
    with kept_path.open("a", encoding="utf-8") as file:
        for id_, path in bar:
            image = read_picture(path)
            start = time.perf_counter()
            found = detector.detect(image)
            milliseconds = round(1000 * (time.perf_counter() - start), 3)
            kept[id_] = {
                "image_id": id_,
                "file": str(path.relative_to(dataset.folder)),
                "milliseconds": milliseconds,
                "results": coco_results(found, id_, categories),
            }
            file.write(json.dumps(kept[id_]) + "\n")
            file.flush()
    pictures = [kept[id_] for id_ in dataset.files]
    about["milliseconds"] = float(np.median([picture["milliseconds"] for picture in pictures]))
    return [result for picture in pictures for result in picture["results"]], about


def evaluate(dataset, results):
    """Compare detections with the annotations.

    Parameters
    ----------
    dataset : Dataset
    results : list of dict
        In COCO's results format.

    Returns
    -------
    COCOeval
        Evaluated, accumulated and summarised.
    """
    truth = dataset.coco
    boxes = [{**r, "area": r["bbox"][2] * r["bbox"][3], "iscrowd": 0} for r in results]
    # COCO.loadRes fails where nothing was found.
    found = index(truth.dataset["images"], truth.dataset["categories"], boxes)
    evaluation = COCOeval(truth, found, "bbox")
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def class_ap(evaluation):
    """AP50 and mAP of each category, None where it has no box; a dict of name to a pair."""
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # (IoUs, recalls, categories)
    values = {}
    for k, id_ in enumerate(evaluation.params.catIds):
        curve = precision[:, :, k]
        pair = (float(curve[0].mean()), float(curve.mean())) if curve.max() > -1 else (None, None)
        values[evaluation.cocoGt.cats[id_]["name"]] = pair
    return values


@dataclass(frozen=True, eq=False)
class Matches:
    """What COCOeval matched in one category, most confident detection first.

    Attributes
    ----------
    objects : ndarray of shape (images,), int
        Annotated boxes that count.
    image : ndarray of shape (N,), int
        Where each detection is.
    right, wrong : ndarray of shape (IoUs, N), bool
        Neither: matched with a crowd.
    """

    objects: np.ndarray
    image: np.ndarray
    right: np.ndarray
    wrong: np.ndarray

    @classmethod
    def of(cls, evaluation):
        """A list of them, one a category."""
        parameters = evaluation.params
        n = len(parameters.imgIds)
        matches = []
        for k in range(len(parameters.catIds)):
            start = k * len(parameters.areaRng) * n  # the first area is "all"
            images = evaluation.evalImgs[start : start + n]
            objects = np.array([np.sum(~np.bool_(e["gtIgnore"])) if e else 0 for e in images], int)
            seen = [(i, e) for i, e in enumerate(images) if e]
            shape = (len(parameters.iouThrs), 0)
            score = np.concatenate([[], *(e["dtScores"] for _, e in seen)])
            order = np.argsort(-score, kind="mergesort")
            image = np.repeat([i for i, _ in seen], [len(e["dtScores"]) for _, e in seen])
            matched, ignored = (
                np.concatenate([np.zeros(shape), *(e[key] for _, e in seen)], axis=1)[:, order] > 0
                for key in ("dtMatches", "dtIgnore")
            )
            image = image.astype(int)[order]
            matches.append(cls(objects, image, matched & ~ignored, ~matched))
        return matches


def weighted_ap(matches, weight):
    """AP of a sample in which each image lies so many times.

    Parameters
    ----------
    matches : list of Matches
    weight : ndarray of shape (images,), int
        All ones gives COCOeval's AP.

    Returns
    -------
    float
        NaN if the sample has no object.
    """
    recalls = np.linspace(0, 1, 101)
    values = []
    for m in matches:
        n = int(m.objects @ weight)
        if n:
            right = np.cumsum(m.right * weight[m.image], axis=1)  # (IoUs, N)
            total = right + np.cumsum(m.wrong * weight[m.image], axis=1)
            precision = right / np.maximum(total, 1)
            precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            precision = np.pad(precision, ((0, 0), (0, 1)))  # recalls never reached: 0
            # All IoUs in one search: each row's counts lie above the row before.
            row = np.arange(len(right))[:, None]
            needed = np.searchsorted(np.arange(n + 1) / n, recalls)
            at = np.searchsorted((right + row * (n + 1)).ravel(), needed + row * (n + 1))
            values.append(precision[row, at - row * right.shape[1]].mean())
    return float(np.mean(values)) if values else float("nan")


def bootstrap(first, second):
    """95 % interval of the difference in AP, had other images been drawn.

    Parameters
    ----------
    first, second : COCOeval
        Of the same images.

    Returns
    -------
    tuple of float
        Percentiles 2.5 and 97.5 of second minus first over RESAMPLES samples of the images.
    """
    generator = np.random.default_rng(0)
    pair = Matches.of(first), Matches.of(second)
    n = len(first.params.imgIds)
    differences = []
    for _ in tqdm(range(RESAMPLES), "bootstrap", disable=None):
        weight = np.bincount(generator.integers(n, size=n), minlength=n)
        differences.append(weighted_ap(pair[1], weight) - weighted_ap(pair[0], weight))
    return tuple(map(float, np.nanpercentile(differences, (2.5, 97.5))))


def markdown(head, rows):
    """A Markdown table, columns aligned for reading as text, too."""
    table = [head, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    lines = [" | ".join(map(str.ljust, row, widths)) for row in table]
    lines.insert(1, " | ".join("-" * width for width in widths))
    return "".join(f"| {line} |\n" for line in lines)


def number(value, form):
    """A figure as text; COCOeval's -1 and our None mean that there is no box to find."""
    return "-" if value is None or value < 0 else form.format(value)


def summary_table(stats):
    """AP and AR as OpenCV Zoo's README has them."""
    cells = [
        (area, iou, str(boxes), number(value, "{:.4f}"))
        for (_, area, iou, boxes), value in zip(STATS, stats, strict=True)
    ]
    rows = [(*ap[:2], ap[3], ar[0], *ar[2:]) for ap, ar in zip(cells[:6], cells[6:], strict=True)]
    return markdown(("area", "IoU", "Average Precision", "area", "boxes", "Average Recall"), rows)


def class_table(values):
    """AP50 and mAP of each class in percent, two classes a row."""
    cells = [
        (name, *(number(value and 100 * value, "{:.1f}") for value in pair))
        for name, pair in values.items()
    ]
    cells += [("", "", "")] * (len(cells) % 2)
    rows = [left + right for left, right in zip(cells[::2], cells[1::2], strict=True)]
    return markdown(("class", "AP50", "mAP") * 2, rows)


def write(path, text):
    """Write a whole file or none."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def write_picture(path, figure):
    """Write a figure as PNG, whole or not at all."""
    part = path.with_name(path.name + ".part")
    figure.savefig(part, format="png", dpi=120, bbox_inches="tight")
    os.replace(part, path)


def draw_curves(evaluation):
    """Precision against recall at each IoU, the mean of all classes."""
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    known = precision[:, :, precision.max(axis=(0, 1)) > -1]
    figure = Figure(figsize=(7, 5))
    axes = figure.subplots()
    for iou, curve in zip(evaluation.params.iouThrs, known.mean(axis=2), strict=True):
        label = f"IoU {iou:.2f}, AP {curve.mean():.3f}"
        axes.plot(evaluation.params.recThrs, curve, label=label)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def draw_classes(values):
    """AP of each class that has boxes, the best on top."""
    pairs = sorted((pair[1], name) for name, pair in values.items() if pair[1] is not None)
    figure = Figure(figsize=(7, 1 + 0.18 * len(pairs)))
    axes = figure.subplots()
    bars = axes.barh([name for _, name in pairs], [ap for ap, _ in pairs])
    axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=6)
    axes.tick_params(axis="y", labelsize=7)
    axes.set(xlabel="AP", xlim=(0, 1.05), ylim=(-0.7, len(pairs) - 0.3))
    return figure


def draw_sweep(points):
    """AP against time, a line for square canvases and one for rect."""
    figure = Figure(figsize=(7, 5))
    axes = figure.subplots()
    for rect in (False, True):
        line = [
            (point["milliseconds"], point["AP"], point["size"])
            for point in points
            if point["rect"] == rect
        ]
        times, precisions, sizes = zip(*line, strict=True)
        axes.plot(times, precisions, "o-", label="rect" if rect else "square")
        for place in zip(times, precisions, sizes, strict=True):
            axes.annotate(
                str(place[2]), place[:2], (4, -10), textcoords="offset points", fontsize=8
            )
    axes.set(xlabel="ms a picture", ylabel="AP")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def run_one(dataset, settings, out):
    """Evaluate one network: print both tables, write them with metrics and charts."""
    results, about = predict(dataset, settings, out)
    evaluation = evaluate(dataset, results)
    stats = dict(zip([name for name, *_ in STATS], map(float, evaluation.stats), strict=True))
    values = class_ap(evaluation)
    classes = {name: {"AP50": pair[0], "AP": pair[1]} for name, pair in values.items()}
    metrics = {"images": len(dataset.files), "settings": about, **stats, "classes": classes}
    summary, per_class = summary_table(evaluation.stats), class_table(values)
    write(out / "predictions.json", json.dumps(results))
    write(out / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    write(out / "summary.md", summary)
    write(out / "classes.md", per_class)
    write_picture(out / "precision_recall.png", draw_curves(evaluation))
    write_picture(out / "classes.png", draw_classes(values))
    print(
        f"{settings}\n{about['engine']}: {len(dataset.files)} pictures, "
        f"{about['milliseconds']:.1f} ms each\n\n{summary}\n{per_class}\nWritten to {out}"
    )


def run_compare(dataset, pair, out):
    """Evaluate two networks or settings and print by how much they differ."""
    kept = [predict(dataset, settings, out) for settings in pair]
    first, second = (evaluate(dataset, results) for results, _ in kept)
    rows = [
        (name, f"{a:.4f}", f"{b:.4f}", f"{b - a:+.4f}")
        for (name, *_), a, b in zip(STATS, first.stats, second.stats, strict=True)
    ]
    times = [about["milliseconds"] for _, about in kept]
    rows.append(("ms", f"{times[0]:.1f}", f"{times[1]:.1f}", f"{times[1] - times[0]:+.1f}"))
    low, high = bootstrap(first, second)
    difference = float(second.stats[0] - first.stats[0])
    text = (
        f"first: {pair[0]}\nsecond: {pair[1]}\n\n"
        + markdown(("", "first", "second", "difference"), rows)
        + f"\nAP difference {difference:+.4f}, 95 % interval {low:+.4f} to {high:+.4f} "
        f"({RESAMPLES} resamples of {len(dataset.files)} pictures)\n"
    )
    write(out / "comparison.md", text)
    print(text, end="")


def run_sweep(dataset, settings, out):
    """Evaluate one network at several sizes, square and rect."""
    points = []
    for rect in (False, True):
        for size in SWEEP_SIZES:
            results, about = predict(dataset, replace(settings, size=(size, size), rect=rect), out)
            stats = evaluate(dataset, results).stats
            points.append({"size": size, "rect": rect, "milliseconds": about["milliseconds"]})
            points[-1] |= {"AP": stats[0], "AP50": stats[1], "AP small": stats[3]}
    rows = [
        (
            f"{point['size']} {'rect' if point['rect'] else 'square'}",
            *(f"{point[name]:.4f}" for name in ("AP", "AP50", "AP small")),
            f"{point['milliseconds']:.1f}",
        )
        for point in points
    ]
    table = markdown(("input", "AP", "AP50", "AP small", "ms"), rows)
    write(out / "sweep.md", table)
    write_picture(out / "sweep.png", draw_sweep(points))
    print(f"{about['engine']}: {len(dataset.files)} pictures\n\n{table}\nWritten to {out}")


def fraction(text):
    """A number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 1")
    return value


def count(text):
    """A whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number from 1")
    return int(text)


def canvas(text):
    """Width and height, from 512 or 640x384."""
    sides = [count(side) for side in text.split("x")]
    if len(sides) > 2:
        raise argparse.ArgumentTypeError(f"{text} is neither SIDE nor WIDTHxHEIGHT")
    return sides[0], sides[-1]


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message):
        self.exit(2, f"evaluate.py: error: {message}\n")


def add_settings(parser):
    """The options that --compare can set anew."""
    add = parser.add_argument_group("network and detection").add_argument
    default = "(default %(default)s)"
    add(
        "--model",
        type=Path,
        default=Settings.model,
        metavar="FILE",
        help="the ONNX network (default the one in this repository)",
    )
    add(
        "--confidence",
        type=fraction,
        default=Settings.confidence,
        metavar="P",
        help=f"leave out objects less certain than this, 0 to 1 {default}",
    )
    add(
        "--nms",
        type=fraction,
        default=Settings.nms,
        metavar="IOU",
        help=f"boxes of one class that overlap more are one object, 0 to 1 {default}",
    )
    add(
        "--size",
        type=canvas,
        metavar="SIDE",
        help="canvas in pixels, SIDE or WIDTHxHEIGHT (default the network's own, else 416)",
    )
    add(
        "--rect",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="pad only to the next multiple of 32",
    )
    add(
        "--augment",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="merge several sizes and mirror images",
    )
    add(
        "--resize",
        choices=("letterbox", "stretch"),
        help="keep the ratio or not (default by network)",
    )
    add(
        "--engine",
        choices=("opencv", "onnxruntime"),
        default=Settings.engine,
        help=f"what runs the network {default}",
    )
    add("--num-classes", type=count, metavar="N", help="if the outputs leave a doubt")


def settings_from(arguments):
    """The part of the parsed options that decides about the detections."""
    return Settings(**{field.name: getattr(arguments, field.name) for field in fields(Settings)})


def parse(argv):
    """Options as a namespace; `second` holds --compare's settings or None."""
    parser = Parser(prog="evaluate.py", description=__doc__.partition("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add(
        "--annotations",
        type=Path,
        required=True,
        metavar="FILE",
        help="COCO instances file, for example instances_val2017.json",
    )
    add("--images", type=Path, required=True, metavar="DIR", help="folder of its pictures")
    add("--limit", type=count, metavar="N", help="only the first N pictures, by id (default all)")
    add(
        "--out",
        type=Path,
        default=Path("results/evaluate"),
        metavar="DIR",
        help="folder for tables, charts and kept predictions (default %(default)s)",
    )
    add_settings(parser)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--sweep",
        action="store_true",
        help="AP against time at sizes 320 to 640, square and rect, instead of --size",
    )
    mode.add_argument(
        "--compare",
        nargs=argparse.REMAINDER,
        metavar="OPTION",
        help="last: the options that differ in a second run to compare with",
    )
    arguments = parser.parse_args(argv)
    arguments.second = None
    if arguments.compare is not None:
        other = Parser(prog="evaluate.py --compare", add_help=False, allow_abbrev=False)
        add_settings(other)
        first = argparse.Namespace(**vars(settings_from(arguments)))
        arguments.second = settings_from(other.parse_args(arguments.compare, first))
    return arguments


def main(argv=None):
    """Run the command line; return its exit code."""
    arguments = parse(argv)
    first = settings_from(arguments)
    try:
        dataset = read_dataset(arguments.annotations, arguments.images, arguments.limit)
        arguments.out.mkdir(parents=True, exist_ok=True)
        if arguments.sweep:
            run_sweep(dataset, first, arguments.out)
        elif arguments.second:
            run_compare(dataset, (first, arguments.second), arguments.out)
        else:
            run_one(dataset, first, arguments.out)
    except (ValueError, cv2.error) as error:  # NanoDet's errors and ours are ValueErrors
        return fail(error, 2)
    except OSError as error:
        return fail(f"{error.filename or arguments.out}: {error.strerror}", 1)
    except KeyboardInterrupt:
        return fail("interrupted. Run the same command again to go on.", 130)
    return 0


def fail(message, code):
    """Say what is wrong in one line on stderr; return the exit code."""
    print("evaluate.py: error:", " ".join(str(message).split()), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
