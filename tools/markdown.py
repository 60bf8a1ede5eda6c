"""Tables that read well as text and as Markdown."""

from cli.command import printable


def markdown(head, rows):
    """A Markdown table whose columns are aligned."""
    table = [[printable(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    lines = [" | ".join(map(str.ljust, row, widths)) for row in table]
    lines.insert(1, " | ".join("-" * width for width in widths))
    return "".join(f"| {line} |\n" for line in lines)
