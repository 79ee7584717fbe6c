"""`Columns`: a table that fits any width without cutting a number.

Where the width does not do for all columns, names are shortened in the middle, text wraps at its words, and what is
still too wide goes on in a further block of columns below, each row under its name again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

__all__ = ["Column", "Columns", "shortened"]

_GAP = 2
_SHORTEST_NAME, _NARROWEST_TEXT, _WIDEST_TEXT = 16, 24, 100


@dataclass(frozen=True)
class Column:
    """Cells under a header. kind: a "number" is shown whole and to the right, a "key" whole and to the left; a "name"
    may be shortened in the middle where the width does not do; a "text" wraps at its words."""

    header: str
    cells: Sequence[str]
    kind: Literal["number", "key", "name", "text"] = "number"

    @property
    def widest(self) -> int:
        """Of its cells as they are, or as they wrap."""
        width = max((cell_len(line) for cell in (self.header, *self.cells) for line in cell.split("\n")), default=0)
        return min(width, _WIDEST_TEXT) if self.kind == "text" else width

    @property
    def narrowest(self) -> int:
        """What it can do with."""
        if self.kind in ("number", "key"):
            return self.widest
        least = max(_SHORTEST_NAME, cell_len(self.header)) if self.kind == "name" else _NARROWEST_TEXT
        return min(self.widest, least)


@dataclass(frozen=True)
class Columns:
    """Columns of equal length, the first of them the rows' names. styles: of rows, by their number."""

    columns: Sequence[Column]
    title: str | None = None
    styles: dict[int, str] = field(default_factory=dict)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for number, block in enumerate(_blocks(self.columns, options.max_width)):
            if number:
                yield Text()
            yield self._table(block, options.max_width, None if number else self.title)

    def _table(self, block: Sequence[Column], room: int, title: str | None) -> Table:
        table = Table(title=title, title_justify="left", box=None, header_style="bold", padding=(0, _GAP, 0, 0))
        fitted = list(_fitted(block, room))
        for column, width in fitted:
            is_number = column.kind == "number"
            table.add_column(
                Text(column.header),
                justify="right" if is_number else "left",
                no_wrap=column.kind != "text",
                overflow="fold",
                min_width=width,
                max_width=width,
            )
        for row in range(max((len(c.cells) for c in block), default=0)):
            table.add_row(*(Text(c.cells[row]) for c, _ in fitted), style=self.styles.get(row, ""))
        return table


def shortened(name: str, width: int) -> str:
    """At most so wide, the middle left out: what tells names apart stands at their ends."""
    if cell_len(name) <= width:
        return name
    kept = max(width - 1, 2)
    return f"{name[: kept - kept // 2]}…{name[len(name) - kept // 2 :]}"


def _blocks(columns: Sequence[Column], room: int) -> Iterator[list[Column]]:
    """The columns in blocks that fit, each with the first column in front."""
    first, rest = columns[0], columns[1:]
    block = [first]
    for column in rest:
        if len(block) > 1 and _least([*block, column]) > room:
            yield block
            block = [first]
        block.append(column)
    yield block


def _least(block: Sequence[Column]) -> int:
    return sum(c.narrowest + _GAP for c in block) - _GAP


def _fitted(block: Sequence[Column], room: int) -> Iterator[tuple[Column, int]]:
    """Each column with its width: what is left beside the least goes to names first, then to text."""
    spare = max(0, room - _least(block))
    widths = {}
    for kind in ("name", "text"):
        for place, column in enumerate(block):
            if column.kind == kind:
                extra = min(spare, column.widest - column.narrowest)
                widths[place], spare = column.narrowest + extra, spare - extra
    for place, column in enumerate(block):
        width = widths.get(place, column.widest)
        if column.kind == "name":
            column = replace(column, cells=[shortened(cell, width) for cell in column.cells])
        yield column, width
