"""Find objects in more pictures than one machine can take: NanoDet on Ray Data.

    pip install "ray[data]"
    python tools/detect_dataset.py -i photos -o found        # a folder, one process a core
    python tools/detect_dataset.py -i list.txt -o found      # one path or address a line
    python tools/detect_dataset.py -i s3://bucket/crawl.parquet -o s3://bucket/found
    python tools/detect_dataset.py -i s3://bucket/photos -o s3://bucket/found --address auto

    duckdb -c "SELECT path, unnest(label), unnest(confidence) FROM 'found/*.parquet'"

The output is a folder of Parquet files with a row for each picture: path, width, height, the lists
label, class_id, confidence and xyxy, and error, which says why a picture can't be read; that stops
nothing. Run again, it does what the output lacks. Exit code: 0 done, 1 failed or some pictures
can't be read, 2 usage or input, 130 Ctrl-C, 143 SIGTERM.
"""

import command

if __name__ == "__main__":
    command.start("detect_dataset.py")

import argparse
import dataclasses
import hashlib
import json
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

# Read when the libraries are loaded, here and on every machine.
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(200_000_000))
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # Ray would report its use to its makers
os.environ.setdefault("RAY_DATA_LOG_LEVEL", "CRITICAL")  # errors arrive as exceptions
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
with command.libraries('"ray[data]"'):
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
    import ray
    import ray.data
    from pyarrow import fs

import cv2
import numpy as np
from command import ROOT, Failed, fail

from media.drawing import label_of
from media.frames import SourceError
from media.pictures import PICTURE_ENDINGS, decode_picture, read_file
from media.pipeline import in_order
from media.sources import open_source
from options import (
    NetworkOptions,
    OneLineParser,
    UsageError,
    add_network_options,
    whole_number,
    wrong_number,
)

NETWORK = "network.onnx"  # its name on every machine
FILE = "Parquet file"  # column of where a path stands
READERS = 4  # files that a process reads at a time, as far storage answers late
FILES = 16  # Parquet files whose paths are read at a time
ROWS = 1000  # pictures in a file written, unless --rows says otherwise
CORE = 0.9  # of a core that a process books: Ray could not read Parquet if all were taken
SCHEMA = pa.schema(
    {
        "path": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "label": pa.list_(pa.string()),
        "class_id": pa.list_(pa.int64()),
        "confidence": pa.list_(pa.float32()),
        "xyxy": pa.list_(pa.list_(pa.float32())),
        "error": pa.string(),
        "warning": pa.string(),
    }
)


class Detector:
    """A process of the cluster: writes a file of results for each batch of pictures.

    `columns` of a batch are paths and, if it has them, bytes; relative paths start from `folder`.
    """

    def __init__(self, options, settings, columns, folder, output):
        cv2.setNumThreads(1)
        self.columns = columns
        self.network = options.load()
        self.labels, self.wanted = options.names_for(self.network)
        self.schema = SCHEMA.with_metadata({"nanodet": json.dumps(settings)})
        with suppress(OSError):  # another machine need not have it
            os.chdir(folder)
        self.filesystem, self.output = locate(output)
        self.done = read_output(output, settings)["path"]

    def __call__(self, batch):
        """Take a pyarrow.Table of pictures; returns one that says what went wrong, if anything."""
        path, data = self.columns
        batch = without(batch, path, self.done)
        paths = batch[path].cast(pa.string()).to_pylist()
        if data in batch.column_names:
            cells = [np.frombuffer(cell.as_py() or b"", np.uint8) for cell in batch[data]]
            pictures = zip(paths, cells, strict=True)
        else:
            pictures = in_order(paths, fetch, READERS)
        rows = [self.row(*picture) for picture in pictures]
        # Done again after a failure, the same batch becomes the same file.
        name = hashlib.sha256("\n".join(paths).encode()).hexdigest()[:32]
        try:
            if rows:
                self.write(pa.Table.from_pylist(rows, self.schema), f"{name}.parquet")
        except OSError as error:
            return pa.table({"error": [str(error)]})
        return pa.table({"error": [""]})

    def row(self, path, data):
        """The row of one picture; its file's content, or a SourceError, is in `data`."""
        try:
            if isinstance(data, SourceError):
                raise data
            image, flaw = decode_picture(data, path)
        except SourceError as error:
            return {"path": path, "error": str(error)}
        found = self.network.detect(image)
        if self.wanted is not None:
            found = found[np.isin(found.class_id, self.wanted)]
        return {
            "path": path,
            "width": image.shape[1],
            "height": image.shape[0],
            "label": [label_of(class_id, self.labels) for class_id in found.class_id],
            "class_id": found.class_id,
            "confidence": found.confidence,
            "xyxy": list(found.xyxy),
            "warning": flaw or None,
        }

    def write(self, table, name):
        """Write a file whole or not at all, on this machine or in a bucket."""
        if self.filesystem.type_name == "local":
            self.filesystem.create_dir(self.output)
        part = f"{self.output}/.{name}.partial"  # a name that readers of the folder skip
        pq.write_table(table, part, filesystem=self.filesystem)
        self.filesystem.move(part, f"{self.output}/{name}")


def describe(options):
    """What runs the network; UsageError if its classes are not those that the labels name."""
    network = options.load()
    if fault := wrong_number(options.names_for(network)[0], network):
        raise UsageError(fault)
    return network.engine


def fetch(path):
    """A picture's file as an array (N,) of uint8, or the SourceError that says why not."""
    try:
        if "://" not in path:
            return read_file(path)
        filesystem, name = locate(path)
        with filesystem.open_input_stream(name, compression=None) as file:
            return np.frombuffer(file.read(), np.uint8)
    except SourceError as error:
        return error
    except (OSError, ValueError) as error:
        return SourceError(f"{path}: can't be read: {error}")


def without(table, column, done):
    """The rows of a table whose path is not among those done."""
    return table.filter(pc.invert(pc.is_in(table[column].cast(pa.string()), value_set=done)))


@lru_cache
def _filesystem(root):
    return fs.FileSystem.from_uri(root)[0]


def locate(path):
    """The file system of a path or address such as s3://bucket/name, and the name there."""
    scheme, separator, name = path.partition("://")
    if not separator:
        return _filesystem("file:///"), os.path.realpath(path)
    try:
        return _filesystem(f"{scheme}://{name.partition('/')[0]}/"), name.rstrip("/")
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: can't be reached: {error}") from error


def files_below(folder, endings):
    """Paths or addresses of all files in a folder and those below that end so, sorted."""
    filesystem, name = locate(folder)
    start = folder.partition("://")[0] + "://" if "://" in folder else ""
    selector = fs.FileSelector(name, recursive=True, allow_not_found=True)
    found = (info.path for info in filesystem.get_file_info(selector) if info.is_file)
    return sorted(start + path for path in found if path.lower().endswith(endings))


def find_pictures(source, columns):
    """A table of the paths in columns[0], and in FILE the Parquet files that they stand in."""
    filesystem, name = locate(source)
    kind = filesystem.get_file_info(name).type
    files, paths = [], []
    if kind == fs.FileType.NotFound:
        raise SourceError(f"{source}: no such file or folder")
    if kind == fs.FileType.Directory:
        if "://" in source:
            paths = files_below(source, PICTURE_ENDINGS)
        else:
            with suppress(SourceError):
                paths = open_source(source).paths  # named as by demo.py, in its order
        files = [] if paths else files_below(source, ".parquet")
    elif source.lower().endswith(".parquet"):
        files = [source]
    else:
        with filesystem.open_input_stream(name) as file:
            lines = file.read().decode(errors="surrogateescape").split("\n")
        paths = [path for path in dict.fromkeys(line.rstrip("\r") for line in lines) if path]
    if paths:
        # A name that is not valid UTF-8 can't stand in Parquet: its row will say so.
        paths = [path.encode(errors="backslashreplace").decode() for path in paths]
        return pa.table({columns[0]: pa.array(paths, pa.string())})
    if not files:
        raise SourceError(f"{source}: contains no pictures, paths of pictures or Parquet files")

    def check(file, schema):
        missing = sorted({*columns} - {*schema.names})
        if missing:
            raise SourceError(f"{file}: has no column {missing[0]}, but {', '.join(schema.names)}")

    table = read_files(files, columns[:1], check)
    if table[columns[0]].null_count or len(table[columns[0]].unique()) < len(table):
        raise SourceError(f"{source}: in column {columns[0]} a path is missing or there twice")
    return table


def read_files(files, columns, check):
    """Columns of Parquet files, as text, and FILE; check(file, schema) sees each first."""
    schema = pa.schema(dict.fromkeys([*columns, FILE], pa.string()))

    def read(file):
        filesystem, name = locate(file)
        try:
            with filesystem.open_input_file(name) as stream:
                parquet = pq.ParquetFile(stream)
                check(file, parquet.schema_arrow)
                table = parquet.read(columns)
            return table.append_column(FILE, pa.repeat(file, len(table))).cast(schema)
        except (OSError, ValueError) as error:
            raise SourceError(f"{file}: can't be read: {error}") from error

    with ThreadPoolExecutor(FILES) as pool:
        return pa.concat_tables([schema.empty_table(), *pool.map(read, files)])


def read_output(output, settings):
    """Columns path and error of what earlier runs wrote; UsageError unless with these settings."""

    def check(file, schema):
        made = json.loads((schema.metadata or {}).get(b"nanodet", "null"))
        if made != settings:
            changed = [key for key in settings if (made or {}).get(key) != settings[key]]
            reason = f"was made with another {', '.join(changed)}"
            raise UsageError(
                f"{file}: {'is not a result of detect_dataset.py' if made is None else reason}. "
                "Give another folder with -o."
            )

    return read_files(files_below(output, ".parquet"), ["path", "error"], check)


def check_places(args):
    """Raise UsageError if results would lie in the input, or nobody answers at --address."""
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
    with tempfile.TemporaryDirectory() as folder:
        for file in (ROOT / "nanodet.py", ROOT / "options.py", command.__file__, __file__):
            shutil.copy(file, folder)
        shutil.copytree(ROOT / "media", os.path.join(folder, "media"))
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
    kind, share = ("GPU", args.gpus) if args.gpus else ("CPU", 1)
    available = ray.cluster_resources().get(kind, 0)
    actors = args.concurrency or max(1, int(available / share))
    if actors * share > available:
        raise UsageError(f"{actors} processes want {share:g} {kind} each, here are {available:g}")
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
    given = (options, settings, columns, os.getcwd(), args.output)
    results = dataset.map_batches(
        Detector,
        fn_constructor_args=given,
        batch_size=rows,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(actors, -(-len(pictures) // rows))),
        num_cpus=CORE,
        num_gpus=args.gpus,
    )
    try:
        for batch in results.iter_rows():
            if batch["error"]:
                raise Failed(f"{args.output}: can't be written: {batch['error']}")
    except ray.exceptions.RayError as error:
        raise Failed(error) from error
    return engine


def parse(argv=None):
    """The options; argparse exits with 2 where one is wrong."""
    parser = OneLineParser(
        prog="detect_dataset.py",
        description=__doc__.partition("\n")[0],
        epilog=__doc__.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
    return parser.parse_args(argv)


def main(argv=None):
    """Run the command line; returns 0, or 1 if some pictures can't be read. Errors are raised."""
    args = parse(argv)
    options = NetworkOptions.of(args)
    check_places(args)
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
    say(f"{args.input}: {len(every)} pictures, {len(every) - len(pictures)} of them done before")
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
    say(f"{args.output}: {len(results)} pictures{ran}")
    unreadable = len(results) - results["error"].null_count
    if unreadable:
        return fail(f"{unreadable} of {len(results)} pictures can't be read", 1)
    return 0


def say(line):
    """Tell the user how far the run is."""
    print(f"detect_dataset.py: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    from detect_dataset import main  # under a name that the workers can import, too

    sys.exit(command.run(main, usage=(UsageError, SourceError)))
