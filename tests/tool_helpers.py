"""Run the tools in this process, where that is enough; it is quicker."""

from pathlib import Path

from cli import command
from media.frames import SourceError
from nanodet import ModelError


def run_tool(module, capsys, *args):
    """Exit code, stdout and stderr of a tool."""
    name, usage = Path(module.__file__).name, (SourceError, ModelError)
    code = command.run(name, lambda: module.main([*map(str, args)]), usage)
    return code, *capsys.readouterr()


def assert_refused(module, result, *words, code=2):
    """A tool wrote nothing but one line on stderr, which contains these words."""
    assert result[:2] == (code, ""), result
    assert result[2].startswith(Path(module.__file__).stem) and ": error: " in result[2]
    assert result[2].count("\n") == 1 and result[2].rstrip("\n").isprintable()
    assert [word for word in words if str(word) not in result[2]] == []
