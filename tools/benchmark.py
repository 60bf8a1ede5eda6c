"""Find the engine that runs NanoDet quickest here, or measure where its time goes.

    python tools/benchmark.py                                  each engine, float32 and int8
    python tools/benchmark.py --mode stages                    each step, and a textbook pipeline
    python tools/benchmark.py --mode stages --engine opencv onnxruntime --size 640x480 1920x1080
    python tools/benchmark.py --mode video --input clip.mp4    FPS, to result.mp4
    python tools/benchmark.py --mode folder --input photos     FPS of pictures, to a folder

    hyperfine --warmup 2 'python demo.py -q -i photo.jpg'      from start to result.jpg

The first takes less than two minutes, and names the flags of the best. Without --input the
example pictures or video are measured. Each network and engine runs in a process of its own:
onnxruntime's threads would take the cores from OpenCV's. What is compared is measured in turns, so
a busy machine blurs times more than ratios. Prints Markdown; results.json goes to --out.
Exit code: 0 done, 1 failed, 2 usage or input, 130 Ctrl-C, 143 SIGTERM.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # python -I and -P know no other folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from cli import command

if __name__ == "__main__":
    command.start("benchmark.py")

import argparse
import itertools
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import ExitStack, closing

import cv2
import numpy as np

import demo
import nanodet
from cli.command import Failed, UsageError, printable, say
from cli.network import (
    BUNDLED,
    ENGINES,
    INT8,
    ROOT,
    DetectAndDraw,
    NetworkOptions,
    find_model,
    installed_engines,
    share_cores,
)
from cli.options import OneLineParser, frame_size, whole_number
from media.drawing import draw
from media.film import Film
from media.frames import Source, SourceError
from media.outputs import save_picture, whole_file
from media.pictures import read_picture
from media.sources import open_source
from nanodet import COCO_CLASSES, Detections, Letterbox
from tools.markdown import markdown

RUNS = {"engines": 3, "stages": 100, "video": 3, "folder": 3}
WARM_UP = 10  # rounds that do not count, in mode stages
PICTURES = 10  # of the video, that one network looks at in mode engines
FIRST = 3  # pictures of each network that do not count, in mode engines
SECONDS = 1.5  # in mode engines, for each of the two figures of a round
LONGEST = 100  # seconds that mode engines may take: else it leaves out the last rounds
# By engine and network at 416, of docs/speed.md: 174 pictures of COCO val2017.
AP = {
    ("opencv", BUNDLED): "0.236",
    ("onnxruntime", BUNDLED): "0.236",
    ("openvino", BUNDLED): "0.236",
    ("opencv", INT8): "0.234",
    ("onnxruntime", INT8): "0.234",
    ("openvino", INT8): "0.234",
}
LOOK, STREAM = "a picture, ms", "a video, FPS"
OBJECTS = 20  # in the picture of mode stages; the confidence is chosen so
SIZES = ((640, 480), (1920, 1080), (4000, 3000))
EXAMPLES = Path(ROOT, "example_inputs")
FRAMES = 120  # of the video or folder that is made of the example pictures
EXAMPLE_FRAME = (768, 576)  # its size in the video
SAME = 0.05  # pixels by which the textbook's boxes may differ
MEAN = np.array((103.53, 116.28, 123.675), np.float32)
STD = np.array((57.375, 57.12, 58.395), np.float32)


def options_of(args):
    """The one network and engine to measure."""
    return NetworkOptions(find_model(args.model[0]), None, None, {"engine": args.engine[0]})


def load(args, threads):
    """The network to measure, on so many threads."""
    cv2.setNumThreads(threads)
    return options_of(args).load()


def spread(values, unit):
    """What was measured, with its median and quartiles: one row of a table."""
    values = [float(value) for value in values]
    q1, median, q3 = np.percentile(values, (25, 50, 75)).tolist()
    return {"unit": unit, "median": median, "q1": q1, "q3": q3, "values": values}


def rows_of(rounds, unit, *ratios):
    """A row for each figure of the rounds, and one for each (above, below) of the same round."""
    rows = {name: spread([figures[name] for figures in rounds], unit) for name in rounds[0]}
    for above, below in ratios:
        values = [figures[above] / figures[below] for figures in rounds]
        rows[f"{above} / {below}"] = spread(values, "times")
    return rows


def milliseconds(function, *args):
    """How long a call takes."""
    started = time.perf_counter()
    function(*args)
    return 1000 * (time.perf_counter() - started)


class Endless(Source):
    """A video, again and again."""

    def __iter__(self):
        while True:
            with open_source(self.name) as source:
                yield from source


def measure_engine(args, _):
    """How long one network takes for a picture on all threads, and FPS of the demo's pipeline."""
    path = args.input or str(EXAMPLES / "street.mp4")
    with open_source(path) as source:
        if not source.moving or source.live:
            raise UsageError(f"{path}: is not a video. Give one with --input.")
        first = [frame.image for frame in itertools.islice(source, PICTURES)]
    images = [image for image in first if image is not None]
    if not images:
        raise UsageError(f"{path}: can't be read.")
    detector, frames, times = load(args, args.threads), itertools.cycle(images), []
    for image in itertools.islice(frames, FIRST):
        detector.detect(image)
    started = time.perf_counter()
    while not times or time.perf_counter() < started + SECONDS:
        times.append(milliseconds(detector.detect, next(frames)))

    video = Endless(path)
    workers = share_cores(video)
    detect = DetectAndDraw(options_of(args), drawing=None)
    with closing(demo.results_in_order(video, detect, workers, hidden=True)) as results:
        for _ in itertools.islice(results, FIRST * workers):  # each worker makes its network
            pass
        started, count = time.perf_counter(), 0
        for _ in results:
            count += 1
            if time.perf_counter() > started + SECONDS:
                break
    rate = count / (time.perf_counter() - started)
    return {Path(path).name: {LOOK: float(np.median(times)), STREAM: rate}}, []


def own_resize(image, size):
    """The resize of detect."""
    small = np.zeros((size[1], size[0], 3), np.uint8)
    Letterbox.fit(image.shape[1::-1], size, keep_ratio=False).draw(image, small)
    return small


def textbook(image, detector, resize=cv2.resize):
    """Find objects the way most programs do it, with a detector's network and settings.

    Returns rows of left, top, right, bottom, confidence and class_id, most confident first.
    `resize` takes an image and (width, height).
    """
    height, width = image.shape[:2]
    canvas_width, canvas_height = new_width, new_height = detector.input_size
    if detector.keep_ratio:
        scale = min(canvas_width / width, canvas_height / height)
        new_width, new_height = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (canvas_width - new_width) // 2, (canvas_height - new_height) // 2
    canvas = np.zeros((canvas_height, canvas_width, 3), np.uint8)
    small = resize(image, (new_width, new_height))
    canvas[top : top + new_height, left : left + new_width] = small
    outputs = detector._forward(cv2.dnn.blobFromImage((canvas.astype(np.float32) - MEAN) / STD))

    boxes, confidences = [], []
    for i, j, strides in detector.head.groups:
        grid = nanodet.anchor_grid(detector.input_size, strides, detector.centre_offset)
        bins = detector.head.reg_max + 1
        logits = outputs[j][:, -4 * bins :].reshape(-1, 4, bins)
        weight = np.exp(logits - logits.max(axis=2, keepdims=True))
        softmax = weight / weight.sum(axis=2, keepdims=True)
        distance = (softmax * np.arange(bins)).sum(axis=2) * grid[:, 2:]
        boxes.append(np.hstack((grid[:, :2] - distance[:, :2], grid[:, :2] + distance[:, 2:])))
        confidences.append(outputs[i][:, : detector.head.num_classes])
    boxes, confidences = np.concatenate(boxes), np.concatenate(confidences)
    boxes[:, 0::2] = np.clip((boxes[:, 0::2] - left) * width / new_width, 0, width)
    boxes[:, 1::2] = np.clip((boxes[:, 1::2] - top) * height / new_height, 0, height)

    threshold, found = detector.prob_threshold, []
    for class_id, scores in enumerate(confidences.T):
        corners, scores = boxes[scores > threshold].tolist(), scores[scores > threshold].tolist()
        xywh = [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in corners]
        for kept in cv2.dnn.NMSBoxes(xywh, scores, threshold, detector.iou_threshold):
            found.append((*corners[kept], scores[kept], class_id))
    return np.array(sorted(found, key=lambda row: -row[4])).reshape(-1, 6)


def difference(found, rows):
    """Pixels between detect's boxes and the textbook's; infinite if the objects differ."""
    # By class, so that equal confidences of two classes may come in any order.
    mine = np.lexsort((found.confidence, found.class_id))
    theirs = np.lexsort((rows[:, 4], rows[:, 5]))
    if not np.array_equal(found.class_id[mine], rows[theirs, 5]):
        return np.inf
    return float(np.abs(found.xyxy[mine] - rows[theirs, :4]).max(initial=0))


class Steps:
    """What `detect` does with images of one (width, height), step by step, each of them timed."""

    def __init__(self, detector, size):
        self.detector = detector
        width, height = canvas = detector.input_size
        self.view = Letterbox.fit(size, canvas, detector.keep_ratio)
        self.grids = [
            nanodet.anchor_grid(canvas, strides, detector.centre_offset)
            for _, _, strides in detector.head.groups
        ]
        self.canvas = np.zeros((height, width, 3), np.uint8)
        self.planes = np.zeros((3, height, width), np.uint8)
        self.blob = np.zeros((1, 3, height, width), np.float32)
        self.tables = (np.arange(256, dtype=np.float32) - MEAN[:, None]) / STD[:, None]

    def __call__(self, image):
        """The objects, bit for bit those of `detect`, and {step: milliseconds}."""
        detector, view, times = self.detector, self.view, {}

        def done(step):
            nonlocal started
            now = time.perf_counter()
            times[step] = 1000 * (now - started)
            started = now

        started = time.perf_counter()
        view.draw(image, self.canvas)
        done("letterbox")
        cv2.split(self.canvas, list(self.planes))
        for plane, table, channel in zip(self.planes, self.tables, self.blob[0], strict=True):
            cv2.LUT(plane, table, dst=channel)
        done("normalise")
        outputs = detector._forward(self.blob)
        done("forward")
        xyxy, confidence, class_id = nanodet.decode(
            outputs, detector.head, self.grids, detector.prob_threshold
        )
        done("decode")
        xyxy = view.to_image(xyxy)
        inside = (xyxy[:, 2:] > xyxy[:, :2]).all(axis=1)
        xyxy, confidence, class_id = xyxy[inside], confidence[inside], class_id[inside]
        done("back to the image")
        kept = nanodet.nms(xyxy, confidence, class_id, detector.iou_threshold)
        found = Detections(xyxy[kept], confidence[kept], class_id[kept])
        done("NMS")
        started = time.perf_counter()
        draw(image, found, COCO_CLASSES)
        done("draw")
        return found, times


def choose_confidence(detector, image):
    """Set the confidence above which OBJECTS are found in an image, or all if there are fewer."""
    detector.prob_threshold = 0.02
    confidence = [1.0, *detector.detect(image).confidence.tolist(), 0.0]
    last = min(OBJECTS, len(confidence) - 2)
    detector.prob_threshold = (confidence[last] + confidence[last + 1]) / 2


def measure_stages(args, _):
    """Every step, detect, the bare network and the textbook, for each size of image."""
    detector = load(args, args.threads)
    picture, _ = read_picture(args.input or str(min(EXAMPLES.glob("*.jpg"))))
    columns, notes = {}, []
    for width, height in args.size:
        image = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
        choose_confidence(detector, image)
        found, size = detector.detect(image), f"{width}x{height}"
        off = difference(found, textbook(image, detector, own_resize))
        if off > SAME:
            raise Failed(f"{args.model[0]} at {size}: detect and textbook differ by {off:.2f} px.")
        notes.append(
            f"{size}: {len(found)} objects at confidence {detector.prob_threshold:.3f}; textbook "
            f"boxes differ by {off:.3f} px at most once it resizes as detect does"
        )
        columns[size] = measure_image(detector, image, args.runs)
    return columns, notes


def measure_image(detector, image, runs):
    """The rows of one size of image."""
    steps = Steps(detector, image.shape[1::-1])
    calls = [
        ("network only", detector._forward, (steps.blob,)),
        ("detect", detector.detect, (image,)),
        ("textbook", textbook, (image, detector)),
    ]
    rounds = []
    for index in range(WARM_UP + runs):
        figures = steps(image)[1]
        # Back and forth, so that nothing always comes first.
        for name, call, given in calls[:: -1 if index % 2 else 1]:
            figures[name] = milliseconds(call, *given)
        figures["detect - network only"] = figures["detect"] - figures["network only"]
        rounds.append(figures)
    return rows_of(rounds[WARM_UP:], "ms", ("detect", "network only"), ("textbook", "detect"))


def make_input(mode, folder):
    """A video or folder of FRAMES frames, made of the example pictures; returns its path."""
    paths = itertools.islice(itertools.cycle(sorted(EXAMPLES.glob("*.jpg"))), FRAMES)
    if mode == "folder":
        (folder / "examples").mkdir()
        for index, path in enumerate(paths):
            shutil.copy(path, folder / "examples" / f"{index:04}.jpg")
        return str(folder / "examples")
    with closing(Film(str(folder / "examples.mp4"), 25)) as film:
        for path in paths:
            film.add(cv2.resize(read_picture(str(path))[0], EXAMPLE_FRAME))
    return str(folder / "examples.mp4")


def plain_loop(args, path, folder, threads):
    """Frames, seconds and CPU seconds of a loop that takes one frame after the other."""
    detector, count = load(args, threads), 0
    started, cpu = time.perf_counter(), time.process_time()
    with open_source(path) as source, closing(Film(f"{folder}/plain.mp4", 25)) as film:
        if source.live or source.kind != args.mode:
            raise UsageError(f"{path}: is not a {args.mode}. Give one with --input.")
        for count, frame in enumerate(source, 1):  # noqa: B007
            if frame.image is None:
                raise UsageError(frame.error)
            drawn = draw(frame.image, detector.detect(frame.image), COCO_CLASSES)
            if args.mode == "video":
                film.add(drawn)
            else:
                save_picture(f"{folder}/plain.jpg", drawn)
    return count, time.perf_counter() - started, time.process_time() - cpu


def demo_loop(args, path, folder):
    """Seconds of demo.py, from the network's file to the result closed."""
    cv2.setNumThreads(args.threads)
    target = f"{folder}/demo.mp4" if args.mode == "video" else f"{folder}/demo"
    network = ["--model", args.model[0], "--engine", args.engine[0]]
    started = time.perf_counter()
    if demo.main(["--quiet", "--save", "--input", path, "--output", target, *network]):
        raise Failed(f"{path}: the demo fails on it.")
    return time.perf_counter() - started


def measure_run(args, folder):
    """FPS of the demo, of a plain loop, and what the processor allows."""
    path = args.input or make_input(args.mode, folder)
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    rounds = []
    for _ in range(args.runs):
        count, _, cpu = plain_loop(args, path, folder, threads=1)
        plain = count / plain_loop(args, path, folder, args.threads)[1]
        whole = count / demo_loop(args, path, folder)
        rounds.append(
            {"processor's bound": cores * count / cpu, "plain loop": plain, "demo": whole}
        )
    rows = rows_of(rounds, "FPS", ("demo", "processor's bound"), ("demo", "plain loop"))
    return {Path(path).name: rows}, [
        f"{count} frames; demo: all of demo.py but starting Python and loading its libraries",
        f"bound: {cores} cores / CPU seconds a frame of the plain loop on one thread",
    ]


def work(args, folder):
    """Measure one network and engine; leaves result.json in the folder."""
    measure = {"engines": measure_engine, "stages": measure_stages}.get(args.mode, measure_run)
    columns, notes = measure(args, folder)
    network = f"{Path(args.model[0]).name}, {load(args, args.threads).engine}"
    result = {"network": network, "columns": columns, "notes": notes}
    Path(folder, "result.json").write_text(json.dumps(result))


def measure_alone(argv, model, engine):
    """The results of one network and engine, measured in a process of its own."""
    with ExitStack() as stack:
        with command.signals.kept():  # else the folder or process would be left
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            one = ["--model", model, "--engine", engine, "--worker", folder]
            command_line = [sys.executable, __file__, *argv, *one]
            # A session of its own, so that Ctrl-C reaches this process only, which then ends it.
            process = subprocess.Popen(command_line, start_new_session=True)  # noqa: S603
            stack.callback(process.wait)
            stack.callback(process.kill)
        code = process.wait()
        if code < 0:
            raise Failed(f"{model}: {engine} dies of {signal.Signals(-code).name}.")
        if code:
            sys.exit(code)  # the worker said what is wrong
        return json.loads(Path(folder, "result.json").read_text())


def machine(threads):
    """What the figures were taken on."""
    cpu = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(": ")[2] for line in lines if "model name" in line), cpu)
    return {
        "CPU": cpu,
        "cores": os.cpu_count(),
        "threads": threads,
        "OpenCV": cv2.__version__,
        "numpy": np.__version__,
        "Python": platform.python_version(),
    }


def cell(row):
    """A median to three digits or so, with its quartiles if it was measured more than once."""

    def number(value):
        return f"{value:.{0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2}f}"

    quartiles = f" ({number(row['q1'])}-{number(row['q3'])})" if len(row["values"]) > 1 else ""
    return number(row["median"]) + quartiles


def table(result):
    """One network's figures as Markdown."""
    columns = result["columns"].values()
    rows = [
        [f"{name}, {row['unit']}", *(cell(column[name]) for column in columns)]
        for name, row in next(iter(columns)).items()
    ]
    notes = "".join(f"- {printable(note)}\n" for note in result["notes"])
    head = ["median (quartiles)", *result["columns"]]
    return f"### {printable(result['network'])}\n\n{markdown(head, rows)}\n{notes}"


def compare_engines(args, argv):
    """The results of each network and engine, measured in turns for as long as there is time."""
    turns = list(itertools.product(args.engine, args.model))
    rounds, started = {turn: [] for turn in turns}, time.perf_counter()
    for number in range(1, args.runs + 1):
        for engine, model in turns[:: 1 if number % 2 else -1]:  # nothing always comes first
            rounds[engine, model].append(measure_alone(argv, model, engine))
        if (time.perf_counter() - started) * (number + 1) / number > LONGEST:
            break
    for (engine, model), results in rounds.items():
        (name,) = results[0]["columns"]
        rows = [result["columns"][name] for result in results]
        results[0]["columns"][name] = {
            figure: spread([row[figure] for row in rows], unit)
            for figure, unit in ((LOOK, "ms"), (STREAM, "FPS"))
        }
        yield {**results[0], "engine": engine, "model": model, "flags": flags_for(model, engine)}


def flags_for(model, engine):
    """What to type for a network and engine."""
    known = {BUNDLED: [], INT8: ["--int8"]}
    flags = known.get(model, ["-m", shlex.quote(model)])
    usual = "onnxruntime" if model == INT8 else "opencv"
    return " ".join(flags + ([] if engine == usual else ["--engine", engine]))


def engine_table(results):
    """The figures of all engines as Markdown, the best of each kind marked, and what to type."""
    rows, figures = [], [next(iter(result["columns"].values())) for result in results]
    best = {
        LOOK: min(range(len(results)), key=lambda i: figures[i][LOOK]["median"]),
        STREAM: max(range(len(results)), key=lambda i: figures[i][STREAM]["median"]),
    }
    for i, result in enumerate(results):
        engine, model, flags = (result[key] for key in ("engine", "model", "flags"))
        cells = [cell(figures[i][name]) for name in best]
        cells = [
            f"**{text}**" if best[n] == i else text for n, text in zip(best, cells, strict=True)
        ]
        network = {BUNDLED: "float32", INT8: "int8"}.get(model, Path(model).name)
        ran = result["network"].partition(", ")[2]
        rows.append([ran, network, *cells, AP.get((engine, model), "-"), flags or "none"])
    look, stream = (results[i]["flags"] or "no flags" for i in best.values())
    lines = [
        f"Quickest here: {look} for a picture or camera, {stream} for videos and folders",
        "AP: at 416, on 174 pictures of COCO val2017, from docs/speed.md",
    ]
    if absent := [engine for engine in ENGINES if engine not in installed_engines()]:
        lines.append(f"To compare more: pip install {' '.join(absent)}")
    table = markdown(["engine", "network", *best, "AP", "flags"], rows)
    return table + "\n" + "".join(f"- {line}\n" for line in lines)


def parse(argv):
    """The command line's options."""
    parser = OneLineParser("benchmark.py", __doc__)
    add = parser.add_argument
    add("--mode", choices=RUNS, default="engines", help="what to measure (default %(default)s)")
    what = "networks, as demo.py takes them (default: the one here, in mode engines in int8, too)"
    add("--model", nargs="+", help=what)
    what = "what runs them (default: opencv, in mode engines those that are installed)"
    add("--engine", nargs="+", choices=ENGINES, help=what)
    what = "number of cores to use (default %(default)s)"
    add("--threads", type=whole_number(1), default=cv2.getNumThreads(), metavar="N", help=what)
    what = "sizes of the picture in mode stages"
    add("--size", nargs="+", type=frame_size, metavar="WxH", help=what)
    add("--input", metavar="PATH", help="picture, video or folder, as the mode needs it")
    what = f"how often to measure (default {RUNS['engines']}, in mode stages {RUNS['stages']})"
    add("--runs", type=whole_number(1), metavar="N", help=what)
    add("--out", metavar="DIR", help="output folder (default results/benchmark/MODE)")
    add("--worker", metavar="DIR", help=argparse.SUPPRESS)  # measure, and only write the figures
    args = parser.parse_args(argv)
    args.size, args.runs = args.size or SIZES, args.runs or RUNS[args.mode]
    compare = args.mode == "engines"
    args.model = args.model or ([BUNDLED, INT8] if compare else [BUNDLED])
    args.engine = args.engine or (installed_engines() if compare else ["opencv"])
    args.out = Path(args.out or Path("results", "benchmark", args.mode))
    return args


def main(argv=None):
    """Run the command line."""
    argv = sys.argv[1:] if argv is None else argv
    args = parse(argv)
    if args.worker:
        return work(args, Path(args.worker))
    args.out.mkdir(parents=True, exist_ok=True)
    here, results = machine(args.threads), []
    about = ", ".join(f"{name} {value}" for name, value in here.items())
    print(f"## Speed: {args.mode}\n\n{about}\n", flush=True)
    if args.mode == "engines":
        results += compare_engines(args, argv)
        print(engine_table(results), flush=True)
    else:
        for model, engine in itertools.product(args.model, args.engine):
            results.append(measure_alone(argv, model, engine))
            print(table(results[-1]), flush=True)
    written = {"mode": args.mode, "machine": here, "results": results}
    with whole_file(str(args.out / "results.json")) as part:
        Path(part).write_text(json.dumps(written, indent=1) + "\n")
    say(f"saved {args.out / 'results.json'}")


if __name__ == "__main__":
    sys.exit(command.run("benchmark.py", main, usage=(SourceError,)))
