"""Text files that somebody names: lists of inputs, class names, annotations."""

import codecs
import os
import stat

from cli.command import UsageError

LONGEST_LIST = 256 << 20  # bytes; over a million paths of 200 letters


def read_text(file, limit, name, errors="strict"):
    """The text of a regular file, or of standard input if `file` is 0, of `limit` bytes at most.

    UsageError, which calls the file `name`, if it can't be read.
    """
    try:
        info = os.stat(file)
        if file and not (stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode)):
            raise UsageError(f"{name}: is not a regular file.")  # it may never end
        large = info.st_size > limit
        if not large:
            with open(file, "rb", closefd=bool(file)) as opened:
                data = opened.read(-1 if file else limit + 1)
            large = len(data) > limit
        if large:
            raise UsageError(f"{name}: is larger than {limit} bytes.")
        return decode(data, errors)
    except OSError as error:
        raise UsageError(f"{name}: can't be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        message = f"{name}: can't be read: it is not UTF-8 text. Save it as UTF-8."
        raise UsageError(message) from error


def decode(data, errors="strict"):
    """Text in UTF-8, or in UTF-16 if it begins so, as what PowerShell 5 writes with `>`.

    Nothing tells the code page of any other bytes.
    """
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if utf16 else "utf-8-sig", errors)
