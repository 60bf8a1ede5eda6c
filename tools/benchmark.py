"""Measure how fast NanoDet runs here, and how much of it is the network's own time.

    pip install matplotlib
    python tools/benchmark.py                                  each stage, and a textbook pipeline
    python tools/benchmark.py --engine opencv onnxruntime --size 640x480 1920x1080
    python tools/benchmark.py --mode video --input clip.mp4    frames a second, to result.mp4
    python tools/benchmark.py --mode folder --input photos
    python tools/benchmark.py --mode start                     process start to result.jpg
    python tools/benchmark.py --mode memory                    allocations, and growth; Linux
    python tools/benchmark.py --mode live                      how old the frame shown is

Each network and engine runs in a process of its own: onnxruntime's threads would take the cores
from OpenCV's. What is compared is measured in turns, so a busy machine blurs times more than
ratios. Prints Markdown; results.json and chart.png go to --out.
Exit code: 0 done, 1 failed, 2 usage or input.
"""

import argparse
import collections
import contextlib
import functools
import importlib.util
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import tracemalloc
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import demo  # noqa: E402
import nanodet  # noqa: E402
import options  # noqa: E402
from media.drawing import draw  # noqa: E402
from media.outputs import VideoFile, save_picture  # noqa: E402
from media.pipeline import in_order  # noqa: E402
from media.sources import Live, Pictures, SourceError, Video, open_source, read_picture  # noqa: E402
from nanodet import COCO_CLASSES, NanoDet  # noqa: E402

RUNS = {"stages": 100, "video": 3, "folder": 3, "start": 10}
FRAMES = {"memory": 10_000, "live": 300}
WARM_UP = 10  # rounds that do not count, in mode stages
OBJECTS = 20  # in the picture of mode stages; the confidence is chosen so
SIZES = ((640, 480), (1920, 1080), (4000, 3000))
STREET = ROOT / "example_inputs" / "street.jpg"
LINUX = sys.platform == "linux"
SHARED = Path(os.environ.get("NANODET_SHARED", ROOT.parent / "shared"))
VTEST = SHARED / "video" / "vtest.avi"
INPUTS = {"video": VTEST, "memory": VTEST, "folder": SHARED / "coco_val2017_subset" / "images"}
COUNT = 200  # pictures, in mode folder
CHUNK = 32  # frames that go through one step before the next, where each is measured alone
SAME = 0.05  # pixels that the textbook's boxes may be off
LARGE = 64 << 10  # bytes of a fresh allocation that counts
FAULT_FRAMES = 50  # page faults are counted over
LIVE_RATE, LIVE_CANVAS = 30, 640  # frames a second; a canvas that most processors can't keep up at
MEAN = np.array((103.53, 116.28, 123.675), np.float32)
STD = np.array((57.375, 57.12, 58.395), np.float32)


class Failed(Exception):
    """The measurement went wrong; the message says how."""


class InputError(ValueError):
    """A setting or file that can't be measured; the message says what to do."""


def load(case):
    """The network to measure, on as many threads as asked for."""
    cv2.setNumThreads(case.threads)
    return NanoDet(case.model, engine=case.engine)


def spread(values, unit):
    """Median and quartiles of what was measured, and all of it.

    Parameters
    ----------
    values : sequence of float
    unit : str

    Returns
    -------
    dict
        unit, median, q1, q3, values.
    """
    values = [float(value) for value in values]
    q1, median, q3 = np.percentile(values, (25, 50, 75)).tolist()
    return {"unit": unit, "median": median, "q1": q1, "q3": q3, "values": values}


def ratios(rounds, *pairs):
    """Rows that compare two figures of the same round."""
    return {
        f"{above} / {below}": spread(
            [figures[above] / figures[below] for figures in rounds], "times"
        )
        for above, below in pairs
    }


def milliseconds(function, *args):
    """How long a call takes."""
    started = time.perf_counter()
    function(*args)
    return 1000 * (time.perf_counter() - started)


def plain_resize(image, size):
    """What most programs resize with; it skips pixels where a picture shrinks much."""
    return cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)


def own_resize(image, size):
    """The resize of detect."""
    small = np.zeros((size[1], size[0], 3), np.uint8)
    nanodet.Letterbox.fit(image.shape[1::-1], size, keep_ratio=False).draw(image, small)
    return small


def textbook(image, detector, forward, resize=plain_resize):
    """Find objects the way most programs do it.

    Parameters
    ----------
    image : ndarray of shape (H, W, 3), uint8
        BGR.
    detector : NanoDet
        Gives the settings and the layout of the outputs.
    forward : callable
        Blob in, list of outputs out.
    resize : callable
        Image and (width, height) in, resized image out.

    Returns
    -------
    list of (x1, y1, x2, y2, confidence, class_id)
        Most confident first.
    """
    height, width = image.shape[:2]
    canvas_width, canvas_height = new_width, new_height = detector.input_size
    if detector.keep_ratio:
        scale = min(canvas_width / width, canvas_height / height)
        new_width, new_height = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (canvas_width - new_width) // 2, (canvas_height - new_height) // 2
    canvas = np.full((canvas_height, canvas_width, 3), 0, np.uint8)
    small = resize(image, (new_width, new_height))
    canvas[top : top + new_height, left : left + new_width] = small

    normalised = (canvas.astype(np.float32) - MEAN) / STD
    outputs = forward(cv2.dnn.blobFromImage(normalised))

    boxes, confidences = [], []
    for i, j, strides in detector.head.groups:
        grid = nanodet.anchor_grid(detector.input_size, strides, detector.centre_offset)
        bins = detector.head.reg_max + 1
        logits = outputs[j].reshape(len(grid), -1)[:, -4 * bins :].reshape(-1, 4, bins)
        weight = np.exp(logits - logits.max(axis=2, keepdims=True))
        softmax = weight / weight.sum(axis=2, keepdims=True)
        distance = (softmax * np.arange(bins)).sum(axis=2) * grid[:, 2:]
        boxes.append(np.hstack((grid[:, :2] - distance[:, :2], grid[:, :2] + distance[:, 2:])))
        confidences.append(outputs[i].reshape(len(grid), -1)[:, : detector.head.num_classes])
    boxes, confidences = np.concatenate(boxes), np.concatenate(confidences)
    boxes[:, 0::2] = np.clip((boxes[:, 0::2] - left) * width / new_width, 0, width)
    boxes[:, 1::2] = np.clip((boxes[:, 1::2] - top) * height / new_height, 0, height)

    threshold = detector.prob_threshold
    likely = confidences.max(axis=1) > threshold
    boxes, confidences = boxes[likely], confidences[likely]
    found = []
    for class_id in range(confidences.shape[1]):
        of_class = confidences[:, class_id] > threshold
        scores = confidences[of_class, class_id].tolist()
        corners = boxes[of_class].tolist()
        xywh = [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in corners]
        for kept in cv2.dnn.NMSBoxes(xywh, scores, threshold, detector.iou_threshold):
            found.append((*corners[kept], scores[kept], class_id))
    return sorted(found, key=lambda row: -row[4])


def plain_forward(case, detector):
    """What runs the textbook's network: a cv2.dnn.Net of its own, or detect's onnxruntime."""
    if case.engine == "onnxruntime":
        return detector._engine.forward
    net = cv2.dnn.readNetFromONNX(case.model)
    names = net.getUnconnectedOutLayersNames()

    def forward(blob):
        net.setInput(blob)
        return net.forward(names)

    return forward


def difference(found, rows):
    """Pixels between detect's boxes and the textbook's; infinite if the objects differ."""
    rows = np.array(rows).reshape(-1, 6)
    # By class, so that equal confidences of two classes may come in any order.
    mine = np.lexsort((found.confidence, found.class_id))
    theirs = np.lexsort((rows[:, 4], rows[:, 5]))
    if not np.array_equal(found.class_id[mine], rows[theirs, 5]):
        return np.inf
    return float(np.abs(found.xyxy[mine] - rows[theirs, :4]).max(initial=0))


@contextlib.contextmanager
def timed(owner, name, times):
    """Add up the milliseconds of a function where it is called, by a timer in its place."""
    function = getattr(owner, name)

    def timer(*args):
        started = time.perf_counter()
        result = function(*args)
        times[name] += 1000 * (time.perf_counter() - started)
        return result

    setattr(owner, name, timer)
    yield
    setattr(owner, name, function)


def stages_of(detector, image):
    """Milliseconds of each stage inside one call of detect, then of drawing."""
    times = collections.Counter()
    with contextlib.ExitStack() as stack:
        for owner, name in (
            (nanodet.Letterbox, "draw"),
            (detector, "_fill"),
            (detector._engine, "forward"),
            (nanodet, "decode"),
            (nanodet, "nms"),
            (detector, "detect"),
        ):
            stack.enter_context(timed(owner, name, times))
        found = detector.detect(image)
    return {
        "letterbox": times["draw"],
        "normalise": times["_fill"] - times["draw"],
        "forward": times["forward"],
        "decode": times["decode"],
        "NMS": times["nms"],
        "rest of detect": times["detect"]
        - sum(times[name] for name in ("_fill", "forward", "decode", "nms")),
        "detect without forward": times["detect"] - times["forward"],
        "draw": milliseconds(draw, image, found, COCO_CLASSES),
    }


def choose_confidence(detector, image):
    """Set the confidence above which there are OBJECTS in an image, or all there are."""
    detector.prob_threshold = 0.02
    confidence = [1.0, *detector.detect(image).confidence.tolist(), 0.0]
    last = min(OBJECTS, len(confidence) - 2)
    detector.prob_threshold = (confidence[last] + confidence[last + 1]) / 2


def measure_stages(case):
    """Every stage, detect, the bare network and the textbook, for each size of picture."""
    detector = load(case)
    forward = plain_forward(case, detector)
    street = read_picture(str(STREET))
    columns, notes = {}, []
    for width, height in case.size:
        image = cv2.resize(street, (width, height), interpolation=cv2.INTER_AREA)
        choose_confidence(detector, image)
        found, size = detector.detect(image), f"{width}x{height}"
        off = difference(found, textbook(image, detector, forward, own_resize))
        if off > SAME:
            raise Failed(f"{case.model} at {size}: detect and textbook differ by {off:.2f} px.")
        plain = difference(found, textbook(image, detector, forward))
        notes.append(
            f"{size}: {len(found)} objects at confidence {detector.prob_threshold:.3f}; the "
            f"textbook's boxes are the same to {off:.3f} px if it resizes as detect does, with its "
            f"plain resize {'other objects' if plain == np.inf else f'to {plain:.2f} px'}"
        )
        columns[size] = measure_picture(detector, image, forward, case.runs)
    return columns, notes


def measure_picture(detector, image, forward, runs):
    """The rows of one size of picture."""
    blob = detector._fill(detector._place(image, detector.input_size), image).copy()
    steps = [
        ("bare network", detector._engine.forward, (blob,)),
        ("detect", detector.detect, (image,)),
        ("textbook", textbook, (image, detector, forward)),
    ]
    rounds = []
    for index in range(WARM_UP + runs):
        # Back and forth, so that nothing always comes first.
        order = steps[:: -1 if index % 2 else 1]
        times = {name: milliseconds(step, *args) for name, step, args in order}
        rounds.append(stages_of(detector, image) | {name: times[name] for name, _, _ in steps})
    rounds = rounds[WARM_UP:]
    rows = {name: spread([times[name] for times in rounds], "ms") for name in rounds[0]}
    extra = [times["detect"] - times["bare network"] for times in rounds]
    rows["detect - bare network"] = spread(extra, "ms")
    return rows | ratios(rounds, ("detect", "bare network"), ("textbook", "detect"))


@contextlib.contextmanager
def opened(case, folder):
    """The frames of a video or folder, and a function that writes a drawn one."""
    source = open_source(case.input)
    if isinstance(source, Video):
        with source, VideoFile(f"{folder}/result.mp4", source.fps) as film:
            yield source, lambda frame, drawn: film.write(drawn)
    else:
        paths = list(itertools.islice(itertools.cycle(source.paths), case.count))
        pictures = Pictures(paths, case.input)
        yield pictures, lambda frame, drawn: save_picture(f"{folder}/result.jpg", drawn)


def alone(case, folder):
    """CPU milliseconds a frame of each step alone on one thread, and the number of frames."""
    detector = load(case)
    cv2.setNumThreads(1)
    cpu, done = collections.Counter(), 0

    def measured(name, step, items):
        started = time.process_time()
        results = [step(item) for item in items]
        cpu[f"CPU of {name}"] += 1000 * (time.process_time() - started)
        return results

    with opened(case, folder) as (source, write):
        frames = iter(source)
        while chunk := measured("read", lambda f: f, itertools.islice(frames, CHUNK)):
            if any(frame.image is None for frame in chunk):
                raise InputError("; ".join(f.error for f in chunk if f.error))
            found = measured("detect", lambda f: detector.detect(f.image), chunk)
            pairs = list(zip((f.image for f in chunk), found, strict=True))
            drawn = measured("draw", lambda pair: draw(*pair, COCO_CLASSES), pairs)
            pairs = list(zip(chunk, drawn, strict=True))
            measured("write", lambda pair: write(*pair), pairs)
            done += len(chunk)
    return {name: value / done for name, value in cpu.items()}, done


def plain_loop(case, folder):
    """Seconds of a loop that reads, detects, draws and writes one frame after the other."""
    detector, started = load(case), time.perf_counter()
    with opened(case, folder) as (source, write):
        for frame in source:
            write(frame, draw(frame.image, detector.detect(frame.image), COCO_CLASSES))
    return time.perf_counter() - started


def demo_work(case, workers, *more):
    """The demo's options, and what it does with a frame, for the network to measure."""
    cv2.setNumThreads(case.threads)
    args = options.parse(["-q", "-s", "-m", case.model, "--engine", case.engine, *more], "")
    return args, demo.Work(options.NetworkOptions.of(args), workers, drawing=True)


def demo_loop(case, folder):
    """Seconds of the demo's own loop, once its networks are loaded, and its CPU seconds."""
    with opened(case, folder) as (source, _):
        is_video = isinstance(source, Video)
        target = f"{folder}/demo.mp4" if is_video else f"{folder}/demo"
        args, work = demo_work(case, case.threads, "-o", target)
        run = demo.run_video if is_video else demo.run_pictures
        started, cpu = time.perf_counter(), time.process_time()
        if run(args, source, work, None, None):
            raise Failed(f"{case.input}: the demo fails on it.")
        return time.perf_counter() - started, time.process_time() - cpu


def measure_throughput(case):
    """Frames a second of the demo, of a plain loop, and what the processor allows."""
    rounds, cores = [], len(os.sched_getaffinity(0)) if LINUX else os.cpu_count()
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(case.runs):
            cpu, count = alone(case, folder)
            bound = 1000 * cores / sum(cpu.values())
            rates = {"processor's bound": bound, "plain loop": count / plain_loop(case, folder)}
            seconds, busy = demo_loop(case, folder)
            cpu["CPU of demo, all"] = 1000 * busy / count
            rounds.append({**rates, "demo": count / seconds, **cpu})
    rows = {
        name: spread([figures[name] for figures in rounds], "ms" if name in cpu else "frames/s")
        for name in rounds[0]
    }
    rows |= ratios(rounds, ("demo", "processor's bound"), ("demo", "plain loop"))
    return {Path(case.input).name: rows}, [
        f"{count} frames; demo: demo.py's own loop from the first frame read to the result closed, "
        "its networks already loaded",
        f"bound: {cores} cores / CPU seconds a frame of the four steps, each alone on one thread",
    ]


def measure_start(case):
    """Processes from start to end: the demo on one picture, and the least that it could do."""
    width, height = load(case).input_size
    load_and_run = (
        f"net = cv2.dnn.readNetFromONNX({case.model!r}); net.setInput(blob); "
        "net.forward(net.getUnconnectedOutLayersNames())"
    )
    if case.engine == "onnxruntime":
        load_and_run = (
            "import onnxruntime as o; options = o.SessionOptions(); "
            f"options.intra_op_num_threads = {case.threads}; "
            f"net = o.InferenceSession({case.model!r}, options); "
            "net.run(None, {net.get_inputs()[0].name: blob})"
        )
    blob = f"blob = numpy.zeros((1, 3, {height}, {width}), numpy.float32)"
    with tempfile.TemporaryDirectory() as folder:
        command = [ROOT / "demo.py", "-q", "-i", STREET, "-o", f"{folder}/result.jpg"]
        commands = {
            "import": ["-c", "import cv2, numpy"],
            "import, load, one forward": ["-c", f"import cv2, numpy; {blob}; {load_and_run}"],
            "demo.py": [*command, "-m", case.model, "--engine", case.engine],
        }
        environment = {**os.environ, "OPENCV_FOR_THREADS_NUM": str(case.threads)}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # from the second start on, it is there
        run = functools.partial(subprocess.run, env=environment, check=True)
        rounds = [
            {name: milliseconds(run, [sys.executable, *rest]) for name, rest in commands.items()}
            for _ in range(1 + case.runs)
        ][1:]  # the first fills the system's file cache
    rows = {name: spread([times[name] for times in rounds], "ms") for name in commands}
    rows |= ratios(rounds, ("demo.py", "import, load, one forward"))
    return {STREET.name: rows}, ["processes, from start to end; demo.py writes result.jpg"]


def allocations(function, *args):
    """Peak bytes of fresh memory in a call, and {line of Python: its own} of those above LARGE."""
    lines, place, before, peak = collections.Counter(), "", 0, 0

    def trace(frame, event, _):
        nonlocal place, before, peak
        highest = tracemalloc.get_traced_memory()[1]
        peak = max(peak, highest)
        if place and highest - before > LARGE:
            lines[place] = max(lines[place], highest - before)
        now = frame.f_back if event == "return" else frame
        place = f"{Path(now.f_code.co_filename).name}:{now.f_lineno}"
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        return trace

    tracemalloc.start()
    sys.settrace(trace)
    function(*args)
    sys.settrace(None)
    tracemalloc.stop()
    return peak, lines


def page_faults(function, *args):
    """Minor page faults a call, over FAULT_FRAMES calls."""
    import resource  # not on Windows

    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(FAULT_FRAMES):
        function(*args)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / FAULT_FRAMES


def looped(path, count):
    """Frames of a video, again from its start where it ends, until there were so many."""
    done = 0
    while True:
        with open_source(path) as video:
            for frame in video:
                if done == count:
                    return
                yield frame
                done += 1


def measure_memory(case):
    """What detect allocates a frame, and what the demo's pipeline keeps over many."""
    detector = load(case)
    image = next(looped(case.input, 1)).image
    blob = detector._fill(detector._place(image, detector.input_size), image).copy()
    for _ in range(WARM_UP):
        detector.detect(image)
    peak, lines = allocations(detector.detect, image)
    rows = {
        "peak of fresh memory in detect": spread([peak / 1024], "KiB"),
        "lines of detect that allocate over 64 KiB": spread([len(lines)], ""),
        "page faults a detect": spread([page_faults(detector.detect, image)], ""),
        "page faults a bare forward": spread([page_faults(detector._engine.forward, blob)], ""),
    }
    _, work = demo_work(case, case.threads)
    resident, step = [], max(1, case.frames // 100)
    with tempfile.TemporaryDirectory() as folder, VideoFile(f"{folder}/result.mp4", 25) as film:
        frames = in_order(looped(case.input, case.frames), work, work.workers)
        for index, (_, result) in enumerate(frames):
            film.write(result.drawn)
            if index % step == 0:
                pages = int(Path("/proc/self/statm").read_text().split()[1])
                resident.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
    rows["resident memory"] = spread(resident, "MiB")
    growth = resident[-1] - resident[len(resident) // 10]
    rows["growth of it after the first tenth"] = spread([growth], "MiB")
    held = ", ".join(f"{place} {size // 1024} KiB" for place, size in lines.items()) or "none"
    return {Path(case.input).name: rows}, [
        f"lines of detect that allocate over 64 KiB: {held}",
        f"resident memory: while {case.frames} frames are read, detected, drawn and written",
    ]


class Camera:
    """Stands for a cv2.VideoCapture that has a new frame LIVE_RATE times a second."""

    def __init__(self, image):
        self._image, self.handed, self._started = image, [], time.perf_counter()

    def get(self, _):
        return float(LIVE_RATE)

    def read(self):
        due = self._started + (len(self.handed) + 1) / LIVE_RATE
        time.sleep(max(0, due - time.perf_counter()))
        self.handed.append(time.perf_counter())
        return True, self._image.copy()

    def release(self):
        pass


class Screen:
    """Stands between the demo's loop, its work and its window, and notes how old a frame is."""

    paused = 0.0

    def __init__(self, work, camera, frames):
        self._work, self._camera, self._left = work, camera, frames
        self.description, self.ages, self.inference = work.description, [], []

    def __call__(self, frame):
        self._index = frame.index
        result = self._work(frame)
        self.inference.append(result.milliseconds)
        return result

    def step(self, *_):
        self.ages.append(1000 * (time.perf_counter() - self._camera.handed[self._index]))
        self._left -= 1
        return self._left > 0


def measure_live(case):
    """How old a frame of a camera is when the demo's loop shows it."""
    any_size = nanodet.read_model(case.model)[1] is None
    more = ["--size", str(LIVE_CANVAS)] if any_size else []
    args, work = demo_work(case, 1, "--no-save", *more)
    camera = Camera(read_picture(str(STREET)))
    screen = Screen(work, camera, case.frames)
    with Live("test", camera, 0, print) as source:
        demo.run_live(args, source, screen, None, screen)
    inference = spread(screen.inference, "ms")
    ages = [value / inference["median"] for value in screen.ages]
    rows = {
        "inference": inference,
        "age of the frame shown": spread(screen.ages, "ms"),
        "age / median inference": spread(ages, "times"),
        "worst age / median inference": spread([max(ages)], "times"),
    }
    return {f"{LIVE_RATE} frames a second": rows}, [
        f"{case.frames} frames shown of {len(camera.handed)} that a made-up camera gave; "
        f"{work.description}",
        "age: from the camera's hand-over to the moment that demo.py's loop shows the frame",
    ]


MEASURES = {
    "stages": measure_stages,
    "video": measure_throughput,
    "folder": measure_throughput,
    "start": measure_start,
    "memory": measure_memory,
    "live": measure_live,
}


def measure(case):
    """Run one case; in a process of its own."""
    columns, notes = MEASURES[case.mode](case)
    network = f"{Path(case.model).name}, {load(case).engine}"
    return {"network": network, "columns": columns, "notes": notes}


def machine(threads):
    """What the figures were taken on."""
    cpu = platform.processor() or platform.machine()
    if LINUX:
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


def number(value):
    """Three digits or so."""
    return f"{value:.{0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2}f}"


def cell(row):
    """A median, with its quartiles where there are any."""
    text = number(row["median"])
    return text + (f" ({number(row['q1'])}-{number(row['q3'])})" if len(row["values"]) > 1 else "")


def table(result):
    """One network's figures as Markdown."""
    columns = result["columns"]
    first = next(iter(columns.values()))
    lines = [f"### {result['network']}", "", "| median (quartiles) | " + " | ".join(columns) + " |"]
    lines.append("|---|" + "---|" * len(columns))
    for name, row in first.items():
        cells = [cell(column[name]) for column in columns.values()]
        unit = f", {row['unit']}" if row["unit"] else ""
        lines.append(f"| {name}{unit} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"- {note}" for note in result["notes"]), ""])


def write_chart(path, results, title):
    """Bars of the medians in each table's first unit, lines for the quartiles."""
    from matplotlib.figure import Figure  # checked in parse; not needed in the processes

    figure = Figure(figsize=(9, 4.5 * len(results)), layout="constrained")
    figure.suptitle(title, fontsize=8)
    panels = figure.subplots(len(results), squeeze=False)[:, 0]
    for axes, result in zip(panels, results, strict=True):
        columns = result["columns"]
        height = 0.8 / len(columns)
        for index, (label, rows) in enumerate(columns.items()):
            unit = next(iter(rows.values()))["unit"]
            shown = {name: row for name, row in rows.items() if row["unit"] == unit}
            median, q1, q3 = (
                np.array([row[key] for row in shown.values()]) for key in ("median", "q1", "q3")
            )
            y = np.arange(len(shown)) + height * index
            bars = axes.barh(
                y, median, height, label=label, xerr=(median - q1, q3 - median), ecolor="grey"
            )
            axes.bar_label(bars, [number(value) for value in median], padding=3, fontsize=7)
        axes.set_yticks(np.arange(len(shown)) + 0.4 - height / 2, shown)
        axes.set_xscale("log" if unit == "ms" else "linear")
        axes.invert_yaxis()
        axes.set_xlabel(unit)
        axes.set_title(result["network"], fontsize=9)
        axes.margins(x=0.08)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def positive(text):
    """A whole number from 1 up, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def picture_size(text):
    """WIDTHxHEIGHT, for argparse."""
    width, _, height = text.lower().partition("x")
    return positive(width), positive(height)


def parse(argv):
    """Read the command line, and check what argparse can't."""
    parser = argparse.ArgumentParser(
        prog="benchmark.py",
        description="Measure how fast NanoDet runs here.",
        epilog=__doc__.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--mode", choices=MEASURES, default="stages", help="what to measure (default stages)")
    add("--model", nargs="+", default=[options.BUNDLED], help="ONNX files (default: the one here)")
    add("--engine", nargs="+", default=["opencv"], choices=("opencv", "onnxruntime"))
    add("--threads", type=positive, default=cv2.getNumThreads(), help="default %(default)s")
    add("--size", nargs="+", type=picture_size, metavar="WxH", help="pictures, mode stages")
    add("--input", help="video or folder, modes video, folder, memory")
    add("--count", type=positive, metavar="N", help=f"pictures, mode folder (default {COUNT})")
    add("--runs", type=positive, metavar="N", help=f"how often each is measured (default {RUNS})")
    add("--frames", type=positive, metavar="N", help=f"how many, by mode (default {FRAMES})")
    add("--out", metavar="DIR", help="where to (default results/benchmark/MODE)")
    args = parser.parse_args(argv)
    modes = {"size": ["stages"], "input": INPUTS, "count": ["folder"], "runs": RUNS}
    for name, allowed in {**modes, "frames": FRAMES}.items():
        if getattr(args, name) is not None and args.mode not in allowed:
            parser.error(f"--{name} belongs to --mode {', '.join(allowed)}, not {args.mode}")
    args.size, args.count = args.size or SIZES, args.count or COUNT
    args.runs, args.frames = args.runs or RUNS.get(args.mode), args.frames or FRAMES.get(args.mode)
    args.out = Path(args.out or Path("results", "benchmark", args.mode))
    if args.mode in INPUTS:
        args.input = args.input or str(INPUTS[args.mode])
        check_input(args.input, args.mode)
    if args.mode == "memory" and not LINUX:
        raise InputError("--mode memory reads /proc, which Linux alone has.")
    if not importlib.util.find_spec("matplotlib"):
        raise InputError("matplotlib is not installed. Run: pip install matplotlib")
    return args


def check_input(path, mode):
    """Raise InputError unless the mode can read this."""
    wanted = "folder of pictures" if mode == "folder" else "video file"
    if not os.path.exists(path):
        raise InputError(f"{path}: not found. Give a {wanted} with --input.")
    with open_source(path) as source:
        is_folder = isinstance(source, Pictures) and source.root is not None
        if not (is_folder if mode == "folder" else isinstance(source, Video)):
            raise InputError(f"{path}: is no {wanted}. Give one with --input.")


def main(argv=None):
    """Run the command line.

    Parameters
    ----------
    argv : list of str, optional
        Without the program's name; those of the process if not given.

    Returns
    -------
    int
        0 done, 1 failed, 2 usage or input.
    """
    try:
        args = parse(argv)
        args.out.mkdir(parents=True, exist_ok=True)
        here = machine(args.threads)
        title = ", ".join(f"{name} {value}" for name, value in here.items())
        print(f"## Speed: {args.mode}\n\n{title}\n")
        results = []
        for model, engine in itertools.product(args.model, args.engine):
            case = argparse.Namespace(**{**vars(args), "model": model, "engine": engine})
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                results.append(pool.submit(measure, case).result())
            print(table(results[-1]), flush=True)
    except (Failed, ValueError, SourceError, OSError) as error:
        print(f"benchmark.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1 if isinstance(error, Failed) else 2
    written = {"mode": args.mode, "machine": here, "results": results}
    (args.out / "results.json").write_text(json.dumps(written, indent=1) + "\n")
    write_chart(args.out / "chart.png", results, title)
    print(f"saved {args.out / 'results.json'} and {args.out / 'chart.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
