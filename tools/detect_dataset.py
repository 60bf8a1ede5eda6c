"""Find objects in more pictures than one machine can take: NanoDet on Ray Data.

    pip install "ray[data]"
    python tools/detect_dataset.py -i photos -o found        # a folder, one process a core
    python tools/detect_dataset.py -i list.txt -o found      # one path or address a line
    python tools/detect_dataset.py -i s3://bucket/crawl.parquet -o s3://bucket/found
    python tools/detect_dataset.py -i s3://bucket/photos -o s3://bucket/found --address auto

    duckdb -c "SELECT path, unnest(label), unnest(confidence) FROM 'found/*.parquet'"

The output is a folder of Parquet files with a row for each picture: path, width, height, the lists
label, class_id, confidence and xyxy, and error, which says why a picture can't be read; that stops
nothing. Run again, it does what the output lacks. How much is done and left is shown by a bar on a
terminal, else by a line a minute. Exit code: 0 done, 1 failed or some pictures can't be read, 2
usage or input, 130 Ctrl-C, 143 SIGTERM.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # python -I and -P know no other folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from cli import command

if __name__ == "__main__":
    command.start("detect_dataset.py")

import dataclasses
import hashlib
import json
import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from contextlib import contextmanager, suppress

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # Ray would report its use to its makers
os.environ.setdefault("RAY_DATA_LOG_LEVEL", "CRITICAL")  # errors arrive as exceptions
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")


from cli.command import Failed, UsageError, fail, progress_bar, tell
from cli.network import ROOT, NetworkOptions
from cli.options import OneLineParser, add_network_options, whole_number
from media.frames import SourceError

NETWORK = "network.onnx"  # its name on every machine
ROWS = 1000  # pictures in a file written, unless --rows says otherwise
LINE = 60  # seconds between lines that say how much is done, where stderr is no terminal
CORE = 0.9  # of a core that a process books: Ray could not read Parquet if all were taken


def check_places(args):
    """Raise UsageError if results would lie in the input, or nobody answers at --address."""
    from tools.dataset import locate

    (_, source), (_, output) = locate(args.input), locate(args.output)
    if Path(output).is_relative_to(source) and ("://" in args.input) == ("://" in args.output):
        raise UsageError(f"-o {args.output}: lies in the input. Give a folder outside it.")
    host, _, port = (args.address or "").rpartition("://")[2].rpartition(":")
    if port.isdecimal():  # else auto, which Ray looks up
        try:  # Ray itself would try for minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise UsageError(f"--address {args.address}: no answer: {error}") from error


@contextmanager
def silent_stderr():
    """Nothing reaches stderr, not even from C++: Ray tells there which log level it was given."""
    kept = os.dup(2)
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextmanager
def cluster(args, model):
    """Ray, started here or found at --address, with our files and the network on its machines."""
    import ray

    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(os.path.join(ROOT, "nanodet.py"), folder)
        for name in ("cli", "media", "tools"):
            shutil.copytree(os.path.join(ROOT, name), os.path.join(folder, name))
        shutil.copyfile(model, os.path.join(folder, NETWORK))
        limits = {name: value for name, value in os.environ.items() if name.startswith("OPENCV_")}
        handler = signal.getsignal(signal.SIGTERM)
        here = {} if args.address else {"num_cpus": args.concurrency, "include_dashboard": False}
        try:
            with silent_stderr():
                ray.init(
                    args.address or "local",
                    runtime_env={"working_dir": folder, "env_vars": limits},
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                    **here,
                )
        except (ConnectionError, ValueError) as error:
            raise UsageError(f"--address {args.address}: {error}") from error
        signal.signal(signal.SIGTERM, handler)  # Ray's would say more than one line
        try:
            yield
        finally:
            ray.shutdown()


def detect(args, options, settings, pictures):
    """Find the objects of all pictures on a running Ray, and write them; returns what ran."""
    import ray

    from tools.dataset import FILE, Counter, Detector, describe, locate

    kind, share = ("GPU", args.gpus) if args.gpus else ("CPU", 1)
    available = ray.cluster_resources().get(kind, 0)
    actors = args.concurrency or max(1, int(available / share))
    if actors * share > available:
        raise UsageError(
            f"{actors} processes want {share:g} {kind} each, here are {available:g}. "
            "Give a smaller --concurrency."
        )
    options = dataclasses.replace(options, model=NETWORK)
    try:  # again, as other machines may lack an engine
        engine = ray.get(ray.remote(num_gpus=args.gpus)(describe).remote(options))
    except ray.exceptions.RayTaskError as error:
        raise UsageError(error.cause) from error

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.use_datasource_v2 = False  # its listing of files waits for a whole core for ever
    rows = args.rows or max(1, min(ROWS, len(pictures) // (4 * actors)))
    columns = [args.path_column, args.bytes_column]
    if FILE in pictures.column_names:
        files = pictures[FILE].unique().to_pylist()
        filesystem = locate(files[0])[0]
        names = [locate(file)[1] for file in files]
        dataset = ray.data.read_parquet(
            names, filesystem=filesystem, columns=columns, num_cpus=1 - CORE, partitioning=None
        )
    else:
        parts = [pictures.slice(start, rows) for start in range(0, len(pictures), rows)]
        dataset = ray.data.from_arrow(parts)
    counter = ray.remote(num_cpus=0)(Counter).remote()
    given = (options, settings, columns, os.getcwd(), args.output, lambda: counter.add.remote())
    results = dataset.map_batches(
        Detector,
        fn_constructor_args=given,
        batch_size=rows,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(actors, -(-len(pictures) // rows))),
        num_cpus=CORE,
        num_gpus=args.gpus,
    )

    def count():  # 0 while the counter starts
        ready, _ = ray.wait([counter.number.remote()], timeout=1)
        return ray.get(ready[0]) if ready else 0

    try:
        with progress(len(pictures), count, ray.exceptions.RayError):
            for batch in results.iter_rows():
                if batch["error"]:
                    raise Failed(f"{args.output}: can't be written: {batch['error']}")
    except ray.exceptions.RayError as error:
        raise Failed(error) from error
    return engine


@contextmanager
def progress(total, count, lost):
    """Meanwhile show how many pictures are done; `lost`: the error of a count that can't be had."""
    stopping = threading.Event()

    def show():
        with suppress(lost):
            show_progress(total, count, stopping)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def show_progress(total, count, stopping):
    """Until `stopping` is set, show how much is done: in a bar, or a line now and then."""
    told, first = time.perf_counter(), None  # first: when something was done, and how much
    with progress_bar(total=total, unit=" pictures") as bar:
        while not stopping.wait(1):
            done, now = min(count(), total), time.perf_counter()  # some are looked at again
            if done and first is None:  # until now, processes were starting
                first = now, done
                bar.reset()
                bar.initial = done
            bar.n = done
            bar.refresh()  # in any case, so that the time goes on
            if bar.disable and now - told >= LINE:
                told, line = now, f"{done} of {total} pictures"
                if first and done > first[1]:
                    rate = (done - first[1]) / (now - first[0])
                    left = bar.format_interval((total - done) / rate)
                    line += f", {rate:.1f} a second, {left} left"
                tell(line)


def parse(argv=None):
    """The options; argparse exits with 2 where one is wrong."""
    parser = OneLineParser("detect_dataset.py", __doc__)
    add = parser.add_argument_group("pictures and results; paths, s3:// or gs://").add_argument
    what = "folder of pictures, list of paths, Parquet file with pictures, or folder of such"
    add("-i", "--input", required=True, metavar="PATH", help=what)
    add("-o", "--output", required=True, metavar="PATH", help="folder for the Parquet files")
    column = "column of a Parquet input that contains the {} (default %(default)s)"
    add("--path-column", default="path", metavar="NAME", help=column.format("pictures' names"))
    add("--bytes-column", default="bytes", metavar="NAME", help=column.format("picture files"))
    what = f"pictures in a file written (default {ROWS}, or fewer to give all processes work)"
    add("--rows", type=whole_number(1), metavar="N", help=what)
    add = parser.add_argument_group("machines").add_argument
    add("--address", help="of a Ray cluster, auto on one of its machines (default: this machine)")
    what = "processes that detect at a time (default: one a core, with --gpus as many as fit)"
    add("--concurrency", type=whole_number(1), metavar="N", help=what)
    what = "GPUs for each process, 0.5 puts two on one (default %(default)s)"
    add("--gpus", type=float, default=0, metavar="N", help=what)
    add_network_options(parser)
    args = parser.parse_args(argv)
    if args.gpus < 0 or not (args.gpus <= 1 or args.gpus.is_integer()):
        parser.error(f"--gpus {args.gpus:g}: is neither a part of one nor a whole number")
    return args


def main(argv=None):
    """Run the command line; returns 0, or 1 if some pictures can't be read. Errors are raised."""
    args = parse(argv)
    with command.packages('"ray[data]"'):
        import ray.data  # noqa: F401  before anything is read

        from tools.dataset import (
            check_output,
            describe,
            files_below,
            find_pictures,
            locate,
            read_output,
            without,
        )
    options = NetworkOptions.of(args)
    check_places(args)
    check_output(args.output)
    flags = ("confidence", "nms", "agnostic_nms", "size", "rect", "augment", "resize")
    flags += ("centre_offset", "mean", "std")
    settings = {flag: getattr(args, flag) for flag in flags} | {
        "classes": options.classes,
        "labels": options.labels,
        "model": hashlib.sha256(Path(options.model).read_bytes()).hexdigest(),
    }
    settings = json.loads(json.dumps(settings))  # tuples become lists, as in a file read
    every = find_pictures(args.input, [args.path_column, args.bytes_column])
    results = read_output(args.output, settings)
    pictures = without(every, args.path_column, results["path"])
    tell(f"{args.input}: {len(every)} pictures, {len(every) - len(pictures)} of them done before")
    ran = ""
    for file in files_below(args.output, ".parquet.partial"):  # of a killed run
        locate(file)[0].delete_file(locate(file)[1])
    if len(pictures):
        if not args.address:
            describe(options)  # what is wrong shows before Ray starts
        with cluster(args, options.model):
            ran = "; " + detect(args, options, settings, pictures)
        results = read_output(args.output, settings)
    if lost := len(without(every, args.path_column, results["path"])):
        raise Failed(f"{args.output}: {lost} pictures are missing")
    tell(f"{args.output}: {len(results)} pictures{ran}")
    unreadable = len(results) - results["error"].null_count
    if unreadable:
        return fail(f"{unreadable} of {len(results)} pictures can't be read", 1)
    return 0


if __name__ == "__main__":
    sys.exit(command.run("detect_dataset.py", main, usage=(SourceError,)))
