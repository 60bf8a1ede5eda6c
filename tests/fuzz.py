"""Change bytes of pictures, videos and networks, and see that the demo only ever says so.

python tests/fuzz.py --seconds 60
python tests/fuzz.py --seconds 600 --seed 7 --kind picture video --keep found

A file that makes demo.py crash, hang, take too much memory, or say more than one
line of its own is kept with the command that shows it; the exit code is then 1.
"""

import argparse
import contextlib
import itertools
import os
import random
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import cv2

ROOT = Path(__file__).resolve().parent.parent
PICTURES = sorted((ROOT / "example_inputs").glob("*.jpg"))
NETWORK = ROOT / "object_detection_nanodet_2022nov.onnx"
SIDE = 96  # pixels of the pictures: in a small file more changes hit its structure
FRAMES = 12
ENDINGS = (".jpg", ".png", ".webp", ".gif", ".tiff", ".bmp", ".ppm", ".jp2")
VIDEOS = {".mp4": "mp4v", ".avi": "MJPG", ".mkv": "mp4v"}
BATCH = {"picture": 40, "video": 1, "network": 1}  # files in one run of the demo
INPUT = {"picture": "{}", "video": "{}", "network": f"{PICTURES[0]} -m {{}}"}
SECONDS = 20  # for one run
PEAK = 3 << 30  # bytes of memory: what six pictures of the most pixels allowed may take
ADDRESSES = 12 << 30  # bytes, so that a bomb does not take this machine down
HEADS = (32, 512, 4096, 32768)  # bytes at a file's start or end that structure may fill
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFF0)


def main(argv=None):
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Fuzz the demo's inputs by changing bytes.")
    parser.add_argument("--seconds", type=float, default=60, help="how long (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the changes (default %(default)s)")
    parser.add_argument("--kind", nargs="+", choices=BATCH, default=list(BATCH), help="what of")
    parser.add_argument(
        "--keep",
        type=Path,
        default=Path(tempfile.gettempdir()) / "nanodet-fuzz",
        help="folder for files that show a fault (default %(default)s)",
    )
    args = parser.parse_args(argv)
    dice = random.Random(args.seed)  # noqa: S311
    tried, codes, faults = Counter(), Counter(), 0
    end = time.monotonic() + args.seconds
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(KeyboardInterrupt):
        seeds = make_seeds(Path(folder))
        for turn, kind in enumerate(itertools.cycle(args.kind)):
            if turn and time.monotonic() > end:
                break
            place = Path(folder) / f"{kind}-{args.seed}-{turn}"
            files = write_changed(dice, seeds[kind], place, BATCH[kind])
            fault, code = run(kind, place if len(files) > 1 else files[0])
            tried[kind] += len(files)
            codes[code] += 1
            for path, why in guilty(kind, place, files, fault):
                faults += 1
                keep(args.keep, kind, path, f"{place.name}-{path.name}", why)
            shutil.rmtree(place)
    of = ", ".join(f"{tried[kind]} of {kind}" for kind in args.kind)
    ends = ", ".join(f"{count} with {code}" for code, count in codes.most_common())
    found = f"{faults} faults, kept in {args.keep}" if faults else "no fault"
    print(f"fuzz.py: {of}; runs ended {ends or 'before one was done'}; seed {args.seed}: {found}")
    return int(faults > 0)


def make_seeds(folder):
    """{kind: [(ending, bytes)]} of good files."""
    images = [cv2.resize(cv2.imread(str(path)), (SIDE, SIDE)) for path in PICTURES]
    pictures = [(".jpg", PICTURES[0].read_bytes())]
    for image, ending in itertools.product(images, ENDINGS):
        if cv2.haveImageWriter("a" + ending):
            pictures.append((ending, cv2.imencode(ending, image)[1].tobytes()))
    videos = []
    for ending, codec in VIDEOS.items():
        path = str(folder / ("film" + ending))
        fourcc = cv2.VideoWriter_fourcc(*codec)
        writer = cv2.VideoWriter(path, cv2.CAP_FFMPEG, fourcc, 10, (SIDE, SIDE))
        for i in range(FRAMES):
            writer.write(images[i % len(images)])
        writer.release()
        videos.append((ending, Path(path).read_bytes()))
    return {"picture": pictures, "video": videos, "network": [(".onnx", NETWORK.read_bytes())]}


def write_changed(dice, seeds, folder, count):
    """Write changed copies of seeds; returns their paths."""
    folder.mkdir()
    files = []
    for i in range(count):
        ending, data = dice.choice(seeds)
        files.append(folder / f"{i:02}{ending}")
        files[-1].write_bytes(change(dice, bytearray(data)))
    return files


def change(dice, data):
    """Change some bytes: most often where a file's structure stands, its start and its end."""
    for _ in range(dice.choice((1, 1, 2, 4, 16))):
        head = min(dice.choice((*HEADS, len(data))), len(data))
        at = dice.randrange(head) if dice.random() < 0.7 else len(data) - 1 - dice.randrange(head)
        size = dice.choice((1, 2, 4))
        number = dice.choice(NUMBERS) & (1 << 8 * size) - 1
        match dice.randrange(7):
            case 0:
                data[at] ^= 1 << dice.randrange(8)
            case 1:
                data[at] = dice.randrange(256)
            case 2 | 3:
                data[at : at + size] = number.to_bytes(size, dice.choice(("big", "little")))
            case 4:
                del data[at : at + dice.choice((1, 4, 64))]
            case 5:
                data[at:at] = data[max(0, at - dice.choice((1, 4, 64))) : at]
            case 6 if dice.random() < 0.3:
                del data[at + 1 :]
        data = data or bytearray(1)
    return data


def command(kind, path):
    """The demo's run over a file, or over a folder of pictures."""
    words = [sys.executable, str(ROOT / "demo.py"), "--no-save", "--quiet", "--size", "64", "-i"]
    return words + INPUT[kind].format(path).split(" ")


def run(kind, path):
    """Run the demo over a file or folder; returns the fault, "" if there is none, and the code."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command(kind, path),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES)),
        )
        late = threading.Timer(SECONDS, process.kill)
        late.daemon = True
        late.start()
        _, status, usage = os.wait4(process.pid, 0)
        in_time = late.is_alive()
        late.cancel()
        process.returncode = code = os.waitstatus_to_exitcode(status)
        said.seek(0)
        lines = said.read().decode(errors="replace").splitlines()
    count = len(list(path.iterdir())) if path.is_dir() else 1
    return fault_of(code, lines, count, in_time, usage.ru_maxrss * 1024), code


def fault_of(code, lines, count, in_time, peak):
    """What is wrong with a run, "" if nothing is."""
    last = lines[-1] if lines else ""
    if not in_time:
        return f"takes more than {SECONDS} s"
    if code < 0:
        return f"dies of {signal.Signals(-code).name}: {last}"
    if any("Traceback" in line for line in lines):
        return f"traceback: {last}"
    if code not in (0, 1, 2):
        return f"exit code {code}: {last}"
    if peak > PEAK:
        return f"takes {peak >> 20} MB"
    # libjpeg and libpng write warnings of their own. A folder ends with a summary, a video may
    # tell where it stopped and why.
    own = [line for line in lines if line.startswith("demo.py: ")]
    if len(own) > count + 1:
        return f"says {len(own)} lines: {last}"
    return "fails without a word" if code and not own else ""


def guilty(kind, folder, files, fault):
    """[(path, fault)] of the files that show a fault alone, or of the folder if none does."""
    if not fault or len(files) == 1:
        return [(files[0], fault)] if fault else []
    alone = [(file, run(kind, file)[0]) for file in files]
    return [pair for pair in alone if pair[1]] or [(folder, fault)]  # only together, or by chance


def keep(folder, kind, path, name, fault):
    """Keep a file or folder, and the command that shows the fault."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder.resolve() / name
    (shutil.copytree if path.is_dir() else shutil.copy)(path, kept)
    with open(folder / "commands.txt", "a", encoding="utf-8") as commands:
        commands.write(f"{shlex.join(command(kind, kept))}  # {fault}\n")
    print(f"{kept}: {fault}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
