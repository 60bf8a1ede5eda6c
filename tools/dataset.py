"""Pictures in folders, lists, Parquet files and buckets, and what is found in them as Parquet.

Every machine of a Ray cluster imports this, `Detector` for its processes.
"""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from cli.command import UsageError
from cli.network import in_whole, wrong_number
from cli.text import LONGEST_LIST, decode
from media.drawing import label_of
from media.frames import SourceError
from media.outputs import MANIFEST
from media.pictures import PICTURE_ENDINGS, decode_for, read_file
from media.pipeline import in_order
from media.sources import open_source

ACCEPTED = "a folder of pictures, a list of paths or Parquet files"
FILE = "Parquet file"  # column of where a path stands
READERS = 4  # files that a process reads at a time, as far storage answers late
FILES = 16  # Parquet files whose paths are read at a time
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
    `after_each` is called when a picture has been looked at.
    """

    def __init__(self, options, settings, columns, folder, output, after_each=lambda: None):
        cv2.setNumThreads(1)
        self.columns, self.after_each = columns, after_each
        self.network = options.load()
        self.labels, self.wanted = options.names_for(self.network)
        self.enough = options.enough(self.network)
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
        rows = []
        for picture in pictures:
            rows.append(self.row(*picture))
            self.after_each()
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
            image, flaw, whole = decode_for(self.enough, data, path)
        except SourceError as error:
            return {"path": path, "error": str(error)}
        found = in_whole(self.network.detect(image), image, whole)
        width, height = whole or image.shape[1::-1]
        if self.wanted is not None:
            found = found[np.isin(found.class_id, self.wanted)]
        return {
            "path": path,
            "width": width,
            "height": height,
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


class Counter:
    """How many pictures all processes have looked at; an actor of the cluster."""

    def __init__(self):
        self._number = 0

    def add(self):
        """One more."""
        self._number += 1

    def number(self):
        """How many there were."""
        return self._number


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
        with named(path), filesystem.open_input_stream(name, compression=None) as file:
            return np.frombuffer(file.read(), np.uint8)
    except SourceError as error:
        return error


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
    with named(path):
        return _filesystem(f"{scheme}://{name.partition('/')[0]}/"), name.rstrip("/")


@contextmanager
def named(path):
    """Raise a SourceError that names the path, as errors of file systems need not."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: can't be read: {error}") from error


def info_of(path, selector=None):
    """What its file system knows of a path or address, or of the files that are selected there."""
    filesystem, name = locate(path)
    with named(path):
        return filesystem.get_file_info(selector or name)


def files_below(folder, endings):
    """Paths or addresses of all files in a folder and those below that end so, sorted."""
    start = folder.partition("://")[0] + "://" if "://" in folder else ""
    selector = fs.FileSelector(locate(folder)[1], recursive=True, allow_not_found=True)
    found = (info.path for info in info_of(folder, selector) if info.is_file)
    return sorted(start + path for path in found if path.lower().endswith(endings))


def find_pictures(source, columns):
    """A table of the paths in columns[0], and in FILE the Parquet files that they stand in."""
    filesystem, name = locate(source)
    info = info_of(source)
    kind = info.type
    files, paths = [], []
    if kind == fs.FileType.NotFound:
        raise SourceError(f"{source}: no such file or folder. Give {ACCEPTED}.")
    if kind == fs.FileType.Directory:
        if "://" in source:
            paths = files_below(source, PICTURE_ENDINGS)
        else:
            with suppress(SourceError):
                paths = open_source(source).paths  # named as by demo.py, in its order
        files = [] if paths else files_below(source, ".parquet")
    elif source.lower().endswith(".parquet"):
        files = [source]
    elif kind != fs.FileType.File:
        raise SourceError(f"{source}: is not a regular file. Give {ACCEPTED}.")
    elif info.size > LONGEST_LIST:
        raise SourceError(f"{source}: is larger than {LONGEST_LIST} bytes. Give Parquet files.")
    else:
        try:
            with named(source), filesystem.open_input_stream(name) as file:
                data = file.read()
            lines = decode(data, "surrogateescape").split("\n")
        except UnicodeDecodeError as error:
            raise SourceError(
                f"{source}: is no list of paths: it is not UTF-8 text. Give {ACCEPTED}."
            ) from error
        paths = [path for path in dict.fromkeys(line.rstrip("\r") for line in lines) if path]
    if paths:
        # A name that is not valid UTF-8 can't stand in Parquet: its row will say so.
        paths = [path.encode(errors="backslashreplace").decode() for path in paths]
        return pa.table({columns[0]: pa.array(paths, pa.string())})
    if not files:
        raise SourceError(f"{source}: contains no pictures. Give {ACCEPTED}.")

    def check(file, schema):
        missing = sorted({*columns} - {*schema.names})
        if missing:
            raise SourceError(
                f"{file}: has no column {missing[0]}, but {', '.join(schema.names)}. "
                "Give --path-column or --bytes-column."
            )

    table = read_files(files, columns[:1], check)
    if table[columns[0]].null_count or len(table[columns[0]].unique()) < len(table):
        raise SourceError(f"{source}: in column {columns[0]} a path is missing or there twice.")
    return table


def read_files(files, columns, check):
    """Columns of Parquet files, as text, and FILE; check(file, schema) sees each first."""
    schema = pa.schema(dict.fromkeys([*columns, FILE], pa.string()))

    def read(file):
        filesystem, name = locate(file)
        with named(file), filesystem.open_input_file(name) as stream:
            parquet = pq.ParquetFile(stream)
            check(file, parquet.schema_arrow)
            table = parquet.read(columns)
            return table.append_column(FILE, pa.repeat(file, len(table))).cast(schema)

    with ThreadPoolExecutor(FILES) as pool:
        return pa.concat_tables([schema.empty_table(), *pool.map(read, files)])


def check_output(output):
    """Raise UsageError where results would lie among files that are none, as drawn pictures."""
    if info_of(output).is_file:
        raise UsageError(f"-o {output}: is a file. Give a folder.")
    selector = fs.FileSelector(locate(output)[1], allow_not_found=True)
    files = (info.base_name for info in info_of(output, selector) if info.is_file)
    for name in sorted(files):
        own = name.endswith(".parquet") or name.startswith((".", "_"))  # or of no interest
        if name == MANIFEST or not own:
            raise UsageError(f"-o {output}: has other files in it: {name}. Give another folder.")


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
