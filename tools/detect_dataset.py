"""Find objects in more pictures than one machine can take: NanoDet on Ray Data.

    pip install "ray[data]"
    python tools/detect_dataset.py -i photos -o found        # a folder, one process a core
    python tools/detect_dataset.py -i list.txt -o found      # one path or address a line
    python tools/detect_dataset.py -i s3://bucket/crawl.parquet -o s3://bucket/found
    python tools/detect_dataset.py -i s3://bucket/photos -o s3://bucket/found --address auto

    duckdb -c "SELECT path, unnest(label), unnest(confidence) FROM 'found/*.parquet'"

The output is a folder of Parquet files with a row for each picture: path, width, height, the lists
label, class_id, confidence and xyxy, and error, which says why a picture can't be read; that stops
nothing. Run again, it does what the output does not hold yet. Exit code: 0 done, 1 failed, 2 usage
or input, 130 Ctrl-C.
"""

# ruff: noqa: E402
import argparse
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from pathlib import Path

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # Ray would report its use to its makers
os.environ.setdefault("RAY_DATA_LOG_LEVEL", "CRITICAL")  # errors arrive as exceptions
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
try:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
    import ray
    import ray.data
    from pyarrow import fs
except ImportError as error:
    reason = f"{error.name} is not installed" if error.name else str(error)
    advice = 'Run: pip install "ray[data]"'
    print(f"detect_dataset.py: error: {reason}. {advice}", file=sys.stderr)
    sys.exit(2)

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import demo  # noqa: F401 -- the first: it limits what OpenCV will read
from media.drawing import label_of
from media.sources import PICTURE_ENDINGS, SourceError, decode_picture, open_source, read_file
from options import NetworkOptions, UsageError, add_network_options, whole_number

import cv2  # isort: skip
import numpy as np  # isort: skip

NETWORK = "network.onnx"  # its name on every machine
BATCH = 64  # pictures that a process holds; it reads ahead within them
READERS = 4  # files that a process reads at a time, as far storage answers late
FILES = 16  # Parquet files whose paths are read at a time
PART = re.compile(r".*[0-9a-f]{32}_\d{6}.*\.parquet")  # Ray's names for the files it writes
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
    }
)


class Failed(Exception):
    """The run ended before all was done; the message says why."""


class Detector:
    """A process of the cluster: pictures in, a row of results for each out.

    Parameters
    ----------
    args : argparse.Namespace
        The options.
    labels : sequence of str
    wanted : list of int or None
        The class_id to keep; None keeps all.
    folder : str
        What relative paths start from.
    """

    def __init__(self, args, labels, wanted, folder):
        cv2.setNumThreads(1)
        self.network = NetworkOptions.of(args).load()
        self.labels, self.wanted = labels, wanted
        self.columns = [args.path_column, args.bytes_column]
        self.pool = ThreadPoolExecutor(READERS)
        with suppress(OSError):  # another machine need not have it
            os.chdir(folder)

    def __call__(self, work):
        for pictures in self.read(work):
            yield pa.Table.from_pylist([self.row(*picture) for picture in pictures], SCHEMA)

    def read(self, work):
        """Path and bytes of the pictures, some at a time."""
        if "file" not in work.column_names:
            for part in work.to_batches(BATCH):
                paths = part["path"].to_pylist()
                yield zip(paths, self.pool.map(fetch, paths), strict=True)
            return
        for item in work.to_pylist():
            paths, group = set(item["path_list"]), item["group"]
            filesystem, name = locate(item["file"])
            with filesystem.open_input_file(name) as stream:
                for part in pq.ParquetFile(stream).iter_batches(BATCH, [group], self.columns):
                    rows = zip(*part.select(self.columns).to_pydict().values(), strict=True)
                    yield [(path, data) for path, data in rows if path in paths]

    def row(self, path, data):
        """What the output holds of one picture."""
        try:
            if isinstance(data, SourceError):
                raise data
            image = decode_picture(np.frombuffer(data or b"", np.uint8), path)
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
        }


def describe(args):
    """What runs the network on a machine of the cluster, and how many classes it knows."""
    network = NetworkOptions.of(args).load()
    return network.engine, network.head.num_classes


def fetch(path):
    """The bytes of a picture file, or the SourceError that tells why there are none."""
    try:
        if "://" not in path:
            return read_file(path).tobytes()
        filesystem, name = locate(path)
        with filesystem.open_input_stream(name, compression=None) as file:
            return file.read()
    except SourceError as error:
        return error
    except (OSError, ValueError) as error:
        return SourceError(f"{path}: can't be read: {one_line(error)}")


def one_line(error):
    """An error's text without line breaks."""
    return " ".join(str(error).split())


def without(table, done):
    """The rows of a table whose path is not among those done."""
    return table.filter(pc.invert(pc.is_in(table["path"], value_set=done)))


@lru_cache
def _filesystem(root):
    return fs.FileSystem.from_uri(root)[0]


def locate(path):
    """The file system of a path or address, and the name there.

    Parameters
    ----------
    path : str
        s3://bucket/name, gs://bucket/name, or a path on this machine.

    Returns
    -------
    filesystem : pyarrow.fs.FileSystem
    name : str

    Raises
    ------
    SourceError
        If pyarrow knows no such address.
    """
    scheme, separator, name = path.partition("://")
    if not separator:
        return _filesystem("file:///"), os.path.join(os.getcwd(), path)
    try:
        return _filesystem(f"{scheme}://{name.partition('/')[0]}/"), name
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: can't be reached: {one_line(error)}") from error


def files_below(folder, endings):
    """Paths or addresses of all files in a folder and those below that end so, sorted."""
    filesystem, name = locate(folder)
    start = folder.partition("://")[0] + "://" if "://" in folder else ""
    selector = fs.FileSelector(name, recursive=True, allow_not_found=True)
    found = (info.path for info in filesystem.get_file_info(selector) if info.is_file)
    return sorted(start + path for path in found if path.lower().endswith(endings))


def find_pictures(source, columns):
    """Where the pictures are.

    Parameters
    ----------
    source : str
        Path or address of a folder, a list, a Parquet file, or a folder of these.
    columns : tuple of str
        Of a Parquet input: the one of paths and the one of bytes.

    Returns
    -------
    pyarrow.Table
        Column path, and file and group for pictures in a row group of a Parquet file.

    Raises
    ------
    SourceError
        If there are none, or a path is missing or there twice.
    """
    filesystem, name = locate(source)
    kind = filesystem.get_file_info(name).type
    files, paths = [], []
    if kind == fs.FileType.NotFound:
        raise SourceError(f"{source}: no such file or folder")
    if kind == fs.FileType.Directory:
        if filesystem.type_name == "local":
            with suppress(SourceError):
                paths = open_source(source).paths  # named as by demo.py, in its order
        else:
            paths = files_below(source, PICTURE_ENDINGS)
        files = [] if paths else files_below(source, ".parquet")
    elif source.lower().endswith(".parquet"):
        files = [source]
    else:
        with filesystem.open_input_stream(name) as file:
            lines = file.read().decode(errors="surrogateescape").split("\n")
        paths = [path for path in dict.fromkeys(line.rstrip("\r") for line in lines) if path]
    if not (paths or files):
        raise SourceError(f"{source}: holds no pictures, paths of pictures or Parquet files")
    if paths:
        # A name that is no text can't stand in Parquet: its row will say there is no such file.
        paths = [path.encode(errors="backslashreplace").decode() for path in paths]
        return pa.table({"path": pa.array(paths, pa.string())})
    with ThreadPoolExecutor(FILES) as pool:
        tables = pool.map(partial(read_paths, columns=columns), files)
        table = pa.concat_tables(tables)
    if table["path"].null_count or len(table["path"].unique()) < len(table):
        raise SourceError(f"{source}: in column {columns[0]} a path is missing or there twice")
    return table


def read_paths(file, columns):
    """The paths in a Parquet file and the row groups that hold them; see `find_pictures`."""
    filesystem, name = locate(file)
    try:
        with filesystem.open_input_file(name) as stream:
            parquet = pq.ParquetFile(stream)
            there = parquet.schema_arrow.names
            missing = set(columns) - set(there)
            if missing:
                raise SourceError(f"{file}: has no column {min(missing)}, but {', '.join(there)}")
            paths = parquet.read(columns[:1])[columns[0]].cast(pa.string())
    except (OSError, ValueError) as error:
        raise SourceError(f"{file}: can't be read: {one_line(error)}") from error
    sizes = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
    groups = np.repeat(np.arange(len(sizes)), sizes)
    return pa.table({"file": pa.repeat(file, len(paths)), "group": groups, "path": paths})


def read_output(output, settings):
    """What earlier runs wrote.

    Ray writes in place: a kill leaves the files cut off that it was writing. They are removed, so
    that their pictures are done again.

    Parameters
    ----------
    output : str
        Path or address of a folder.
    settings : dict
        What the results depend on.

    Returns
    -------
    pyarrow.Table
        Columns path and error.

    Raises
    ------
    UsageError
        If the folder holds something else, or results of other settings.
    """

    def read(file):
        filesystem, name = locate(file)
        reason = "is no result of detect_dataset.py"
        try:
            with filesystem.open_input_file(name) as stream:
                parquet = pq.ParquetFile(stream)
                held = json.loads((parquet.schema_arrow.metadata or {}).get(b"nanodet", "null"))
                if held == settings:
                    return parquet.read(["path", "error"])
                if held is not None:
                    changed = [key for key in settings if held.get(key) != settings[key]]
                    reason = f"was made with another {', '.join(changed)}"
        except pa.ArrowInvalid:  # its end is missing, which tells what is in it
            if PART.fullmatch(os.path.basename(name)):
                filesystem.delete_file(name)
                return None
        raise UsageError(f"{file}: {reason}. Give another folder with -o.")

    with ThreadPoolExecutor(FILES) as pool:
        parts = pool.map(read, files_below(output, ".parquet"))
        nothing = pa.table({"path": pa.array([], "string"), "error": pa.array([], "string")})
        return pa.concat_tables([nothing, *(part for part in parts if part is not None)])


def check_address(address):
    """Raise UsageError where nobody answers: Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdecimal():
        return  # auto, which Ray looks up
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise UsageError(f"--address {address}: no answer: {one_line(error)}") from error


@contextmanager
def cluster(args, model):
    """Ray, started here or found at --address, with our files and the network on its machines."""
    with tempfile.TemporaryDirectory() as folder:
        for file in (*ROOT.glob("*.py"), __file__):
            shutil.copy(file, folder)
        shutil.copytree(ROOT / "media", os.path.join(folder, "media"))
        shutil.copyfile(model, os.path.join(folder, NETWORK))
        # Read when OpenCV is loaded; demo.py sets them.
        limits = {name: os.environ[name] for name in os.environ if name.startswith("OPENCV_")}
        here = {} if args.address else {"num_cpus": args.concurrency, "include_dashboard": False}
        try:
            ray.init(
                args.address or "local",
                runtime_env={"working_dir": folder, "env_vars": limits},
                logging_level=logging.ERROR,
                log_to_driver=False,
                **here,
            )
        except (ConnectionError, ValueError) as error:
            raise UsageError(f"--address {args.address}: {one_line(error)}") from error
        try:
            yield
        finally:
            ray.shutdown()


def detect(args, labels, wanted, pictures, schema):
    """Find the objects of all pictures on a running Ray, and write them; see `run`."""
    kind, share = ("GPU", args.gpus) if args.gpus else ("CPU", 1)
    there = ray.cluster_resources().get(kind, 0)
    actors = args.concurrency or int(there / share)
    if actors * share > there or not actors:
        raise UsageError(
            f"{max(actors, 1)} processes want {share:g} {kind} each, here are {there:g}"
        )
    args = argparse.Namespace(**vars(args) | {"model": NETWORK})
    try:
        engine, classes = ray.get(ray.remote(num_gpus=args.gpus)(describe).remote(args))
    except ray.exceptions.RayTaskError as error:
        raise UsageError(error.cause) from error
    if classes != len(labels):
        say(f"the network knows {classes} classes, --labels names {len(labels)}")

    work = pictures
    if "file" in pictures.column_names:
        work = pictures.group_by(["file", "group"]).aggregate([("path", "list")])
    rows = max(1, min(args.rows, len(pictures) // (4 * actors)))
    step = max(1, rows * len(work) // len(pictures))
    parts = [work.slice(start, step) for start in range(0, len(work), step)]
    filesystem, folder = locate(args.output)
    ray.data.from_arrow(parts).map_batches(
        Detector,
        fn_constructor_args=(args, labels, wanted, os.getcwd()),
        batch_size=step,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(actors, len(parts))),
        num_cpus=1,
        num_gpus=args.gpus,
    ).write_parquet(
        folder,
        filesystem=filesystem,
        schema=schema,
        ray_remote_args={"num_cpus": 0},  # all cores are taken, and it is little work
    )
    return engine


def run(args):
    """Do what the options say.

    Parameters
    ----------
    args : argparse.Namespace
        See `parse`.

    Raises
    ------
    UsageError, SourceError
        If an option or an input can't be used.
    Failed
        If a picture is missing from the output at the end, or there twice.
    """
    options = NetworkOptions.of(args)
    labels, wanted, model = options.labels, options.wanted, options.model
    settings = {key: getattr(args, key) for key in ("confidence", "nms", "size", "rect", "augment")}
    settings |= {
        "classes": wanted,
        "labels": labels,
        "model": hashlib.sha256(Path(model).read_bytes()).hexdigest(),
    }
    settings = json.loads(json.dumps(settings))  # tuples become lists, as in a file read
    pictures = find_pictures(args.input, [args.path_column, args.bytes_column])
    total = len(pictures)
    pictures = without(pictures, read_output(args.output, settings)["path"])
    say(f"{args.input}: {total} pictures, {total - len(pictures)} of them done before")
    if not len(pictures):
        return
    if args.address:
        check_address(args.address)
    else:
        describe(args)  # what is wrong shows before Ray starts
    with cluster(args, model):
        schema = SCHEMA.with_metadata({"nanodet": json.dumps(settings)})
        engine = detect(args, labels, wanted, pictures, schema)
    every = read_output(args.output, settings)
    lost = len(without(pictures, every["path"]))
    twice = len(every) - len(every["path"].unique())
    unreadable = len(every) - every["error"].null_count
    say(f"{args.output}: {len(every)} pictures, {unreadable} of them can't be read; {engine}")
    if lost or twice:
        raise Failed(f"{args.output}: {lost} pictures are missing and {twice} there twice")


def parse(argv):
    """The options; argparse exits with 2 where one is wrong."""
    parser = argparse.ArgumentParser(
        prog="detect_dataset.py",
        description=__doc__.partition("\n")[0],
        epilog=__doc__.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    data = parser.add_argument_group("pictures and results; a path, s3://... or gs://...")
    data.add_argument(
        "-i",
        "--input",
        required=True,
        metavar="PATH",
        help="folder of pictures, list of paths, Parquet file with pictures, or folder of such",
    )
    data.add_argument(
        "-o", "--output", required=True, metavar="PATH", help="folder of the Parquet files written"
    )
    data.add_argument(
        "--path-column",
        default="path",
        metavar="NAME",
        help="column of a Parquet input that names each picture (default %(default)s)",
    )
    data.add_argument(
        "--bytes-column",
        default="bytes",
        metavar="NAME",
        help="column of a Parquet input that holds the picture files (default %(default)s)",
    )
    data.add_argument(
        "--rows",
        type=whole_number(1),
        default=1000,
        metavar="N",
        help="pictures in a file written, lost at most by a killed process (default %(default)s)",
    )
    machines = parser.add_argument_group("machines")
    machines.add_argument(
        "--address", help="of a Ray cluster, auto on one of its machines (default: this machine)"
    )
    machines.add_argument(
        "--concurrency",
        type=whole_number(1),
        metavar="N",
        help="processes that detect at a time (default: one a core, with --gpus as many as fit)",
    )
    machines.add_argument(
        "--gpus",
        type=float,
        default=0,
        metavar="N",
        help="GPUs for each process, 0.5 puts two on one (default %(default)s)",
    )
    add_network_options(parser)
    return parser.parse_args(argv)


def main(argv=None):
    """Run the command line.

    Parameters
    ----------
    argv : list of str, optional
        Without the program's name; those of the process if not given.

    Returns
    -------
    int
        0 done, 1 failed, 2 usage or input, 130 ended with Ctrl-C.
    """
    args = parse(argv)
    try:
        run(args)
    except (UsageError, SourceError) as error:
        return fail(error, 2)
    except (Failed, OSError, ValueError, ray.exceptions.RayError) as error:
        return fail(error, 1)
    except KeyboardInterrupt:
        return 130
    return 0


def say(line):
    """Tell the user how far the run is."""
    print(line, file=sys.stderr, flush=True)


def fail(error, code):
    """Say what was wrong in one line, and give the exit code."""
    say(f"detect_dataset.py: error: {one_line(error)}")
    return code


if __name__ == "__main__":
    from detect_dataset import main  # under a name that the workers can import, too

    sys.exit(main())
