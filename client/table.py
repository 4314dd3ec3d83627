"""A CSV file as rows, one at a time: its encoding, delimiter and columns are found by its beginning."""

import csv
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.trouble import Trouble

LOOKED_AT_BYTES = 2**18
DELIMITERS = ",;\t|"
LARGEST_CELL = min(sys.maxsize, 2**31 - 1)
BOMS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


@dataclass(frozen=True)
class Table:
    """A file of rows. `columns` are the names in its first row."""

    path: Path
    encoding: str
    delimiter: str
    columns: list[str]

    @classmethod
    def of(cls, path: Path, *, encoding: str | None = None, delimiter: str | None = None) -> "Table":
        """What is given wins over what is found. Raises Trouble if the file cannot be read or names no columns."""
        csv.field_size_limit(LARGEST_CELL)
        try:
            with path.open("rb") as file:
                beginning = file.read(LOOKED_AT_BYTES)
        except OSError as error:
            raise Trouble(f"{path} cannot be read: {error.strerror}.") from None
        found = cls(path, encoding or _encoding(beginning), delimiter or ",", [])
        if delimiter is None:
            found = cls(path, found.encoding, _delimiter(found), [])
        columns = [name.strip() for name in next(found._rows(), [])]
        if not any(columns):
            raise Trouble(f"{path} has no names of columns in its first line.")
        twice = sorted({name for name in columns if columns.count(name) > 1})
        if twice:
            raise Trouble(f"{path} has more than one column named {twice[0]!r}. Rename one of them.")
        return cls(path, found.encoding, found.delimiter, columns)

    def rows(self) -> Iterator[tuple[int, dict[str, str]]]:
        """Number (from 1, without the names and empty lines) and cells of each row. Raises Trouble for a row with more
        or fewer cells than columns: what belongs to which column would be a guess."""
        number = 0
        rows = self._rows()
        next(rows, None)
        for cells in rows:
            if not cells:
                continue
            number += 1
            if len(cells) != len(self.columns):
                raise Trouble(
                    f"Row {number} of {self.path} has {len(cells)} cells, and there are {len(self.columns)} columns. A "
                    f"cell that holds {self.delimiter!r} or quotes has to stand in double quotes."
                )
            yield number, dict(zip(self.columns, cells, strict=True))

    def _rows(self) -> Iterator[list[str]]:
        try:
            # newline="" leaves the line ends inside of cells as they are.
            with self.path.open(encoding=self.encoding, newline="") as file:
                yield from csv.reader(file, delimiter=self.delimiter, strict=True)
        except (UnicodeError, LookupError) as error:
            raise Trouble(f"{self.path} is not {self.encoding}: {error}. Name its encoding with --encoding.") from None
        except csv.Error as error:
            raise Trouble(f"{self.path} is no CSV with the delimiter {self.delimiter!r}: {error}.") from None


def _encoding(beginning: bytes) -> str:
    """By the BOM; UTF-8 if it can be that; else what charset-normalizer takes for likeliest."""
    for bom, name in BOMS.items():
        if beginning.startswith(bom):
            return name
    try:
        # The last character may be cut.
        beginning[: len(beginning) - 3 if len(beginning) == LOOKED_AT_BYTES else None].decode()
    except UnicodeDecodeError as error:
        if len(beginning) < LOOKED_AT_BYTES or error.start < len(beginning) - 8:
            return _likeliest(beginning)
    return "utf-8"


def _likeliest(beginning: bytes) -> str:
    from charset_normalizer import from_bytes

    best = from_bytes(beginning).best()
    # Of the single-byte encodings, that of Windows is the one that spreadsheets write.
    return "cp1252" if best is None or best.encoding in ("cp1250", "latin_1", "iso8859_15", "cp1252") else best.encoding


def _delimiter(table: Table) -> str:
    """The one that gives the first rows the most columns, the same number in each."""
    best, most = ",", 1
    for delimiter in DELIMITERS:
        try:
            rows = Table(table.path, table.encoding, delimiter, [])._rows()
            widths = [len(cells) for cells, _ in zip(rows, range(20), strict=False) if cells]
        except Trouble as error:
            if "is not" in error.message:
                raise
            continue
        if widths and len(set(widths)) == 1 and widths[0] > most:
            best, most = delimiter, widths[0]
    return best


def described(table: Table) -> str:
    names: dict[str, Any] = {"\t": "tab", "utf-8-sig": "utf-8 with BOM"}
    delimiter, encoding = (names.get(each, each) for each in (table.delimiter, table.encoding))
    return f"{table.path}: {encoding}, delimiter {delimiter}, columns {', '.join(table.columns)}."
