"""What the command line of every tool does: one line for each error, exit codes, Ctrl-C.

    import command; command.start("evaluate.py")    first, before libraries that load slowly
    ...
    sys.exit(command.run(main))

Exit codes: 0 done, 1 failed, 2 usage or input, 130 Ctrl-C, 143 SIGTERM.
"""

import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # tools use the product's own modules
ENDING = (signal.SIGINT, signal.SIGTERM)
_program = Path(sys.argv[0]).name


class InputError(ValueError):
    """A setting or file that can't be used; the message says what to do."""


class Failed(Exception):
    """The work can't be finished; the message says why."""


def start(program):
    """Until `run`, Ctrl-C and SIGTERM end the process at once and with one line.

    A module that is only imported changes nothing in the process.

    Parameters
    ----------
    program : str
        Its name in messages, and the name of its file.
    """
    global _program
    _program = program
    if Path(sys.argv[0]).name != program:
        return

    def end(number, _):
        os.write(2, f"{program}: interrupted\n".encode())
        os._exit(128 + number)

    for number in ENDING:
        signal.signal(number, end)


@contextmanager
def libraries(packages):
    """Exit with one line and code 1 where a library imported in here is not installed.

    Parameters
    ----------
    packages : str
        What to give to pip install.
    """
    try:
        yield
    except ImportError as missing:
        name = missing.name or missing
        sys.exit(f"{_program}: error: {name} is not installed. Run: pip install {packages}")


def run(main, usage=()):
    """Call main(), and say in one line what went wrong.

    Parameters
    ----------
    main : callable
        Its result is the exit code; None stands for 0.
    usage : tuple of exception types
        Those that mean exit code 2, beside `InputError`.

    Returns
    -------
    int
        The exit code.
    """

    ended = []

    def end(number, _):  # an exception, so that temporary files and child processes go
        ended.append(number)
        if len(ended) == 1:  # more signals change nothing
            raise KeyboardInterrupt(128 + number)

    before = {number: signal.getsignal(number) for number in ENDING}
    try:
        for number in ENDING:
            signal.signal(number, end)
        return main() or 0
    except (InputError, *usage) as error:
        return fail(error, 2)
    except OSError as error:
        return fail(f"{error.filename}: {error.strerror}" if error.filename else error, 1)
    except Failed as error:
        return fail(error, 1)
    except MemoryError:
        return fail("out of memory", 1)
    except KeyboardInterrupt as interrupt:
        return fail("interrupted", interrupt.args[0])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def uninterrupted():
    """Ctrl-C and SIGTERM that come in here take effect at its end: nothing is left half made."""
    came = []
    before = {number: signal.signal(number, lambda n, _: came.append(n)) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)


def fail(error, code):
    """Say what is wrong in one line of printable text on stderr; returns the exit code."""
    text = " ".join(str(error).split())  # a file's name may contain a line break or escape codes
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    print(f"{_program}: error: {text}", file=sys.stderr)
    return code


def markdown(head, rows):
    """A Markdown table whose columns are aligned for reading as text, too."""
    table = [head, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    lines = [" | ".join(map(str.ljust, row, widths)) for row in table]
    lines.insert(1, " | ".join("-" * width for width in widths))
    return "".join(f"| {line} |\n" for line in lines)
