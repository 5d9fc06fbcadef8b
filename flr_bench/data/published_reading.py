"""Reading what others published: examples with their histories as list literals, items in ``info.txt``.

Everything works on columns; the only loop over rows is that over rows whose titles do not agree with
``info.txt`` at first sight.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flr_bench.errors import DataError, UnknownNameError
from flr_bench.interface import Int32s, Int64s

if TYPE_CHECKING:
    import pyarrow as pa


LITERAL_LIMIT = 1_000_000
"""Characters of one list literal at most; the longest that was ever published has some thousands."""


_WHOLE_NUMBERS = r"^\s*\[\s*\d{1,18}(?:\s*,\s*\d{1,18})*\s*\]\s*$"
_TEXT = re.compile(r"\s*(?:'((?:[^'\\\n]|\\.)*)'|\"((?:[^\"\\\n]|\\.)*)\")\s*")
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_ESCAPED = {"\\": "\\", "'": "'", '"': '"', "n": "\n", "r": "\r", "t": "\t", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}
_BLOCK = 16 << 20


@dataclass(frozen=True, eq=False)
class Info:
    """The items that ``info.txt`` lists.

    Attributes:
        numbers: ``[n]`` int64, the id of each row, distinct.
        texts: ``title`` and, where the file has it, ``semantic_id``: ``[n]`` text.
    """

    numbers: Int64s
    texts: Mapping[str, pa.Array]

    def rows(self, numbers: Int64s) -> Int64s:
        """The row of each id; -1 for one that is not listed."""
        order = np.argsort(self.numbers, kind="stable")
        ordered = self.numbers[order]
        found = np.minimum(np.searchsorted(ordered, numbers), len(ordered) - 1)
        return np.where(ordered[found] == numbers, order[found], -1).astype(np.int64)


@dataclass(frozen=True, eq=False)
class ExampleRows:
    """The examples of one file, in its order; history ``i`` is ``items[starts[i]:starts[i + 1]]``.

    Attributes:
        users: ``[n]`` text.
        targets: ``[n]`` int32 rows of the catalog.
        starts: ``[n + 1]`` int64 offsets into ``items``.
        items: ``[m]`` int32 rows of the catalog.
        times: ``[n]`` int64, of the target, or ``None`` where the file has none.
        item_times: ``[m]`` int64, or ``None``.
    """

    users: pa.Array
    targets: Int32s
    starts: Int64s
    items: Int32s
    times: Int64s | None
    item_times: Int64s | None

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.targets)


@dataclass(frozen=True)
class Layout:
    """Which columns a kind of file has.

    Attributes:
        times: whether there are ``timestamp`` and ``history_timestamp``.
        texts: column of the target's text by name of the column in :class:`Info`; the history's has
            ``history_`` before it.
        optional: those of ``texts`` that a file may lack.
    """

    times: bool
    texts: Mapping[str, str] = field(default_factory=lambda: {"title": "item_title"})
    optional: frozenset[str] = frozenset()

    def columns(self, there: Sequence[str], path: Path) -> list[str]:
        """The columns to read of those that are there.

        Raises:
            DataError: a column is missing or given twice; names the nearest.
        """
        needed = ["user_id", "history_item_id", "item_id"]
        needed += ["history_timestamp", "timestamp"] if self.times else []
        for name, column in self.texts.items():
            pair = [f"history_{column}", column]
            needed += pair if name not in self.optional or set(pair) <= set(there) else []
        for name in needed:
            if name not in there:
                hint = str(UnknownNameError("column", name, there)).split(": ", 1)[1]
                raise DataError(f"{path}:1: there is no column '{name}': {hint}")
            if list(there).count(name) > 1:
                raise DataError(f"{path}:1: two columns are called '{name}'; remove one")
        return needed


def read_info(path: Path, columns: Sequence[str]) -> Info:
    """Read ``info.txt``.

    Args:
        path: the file, plain or gzip, UTF-8.
        columns: what stands on a line, ``title`` and ``id`` among it; further tabs belong to the title.

    Raises:
        DataError: unreadable, a line lacks a field, an id is no number or listed twice, a title is blank.
    """
    import pyarrow as pa

    before = columns.index("title")
    after = len(columns) - before - 1
    fields: dict[str, list[str]] = {name: [] for name in columns}
    seen: dict[int, int] = {}
    numbers = []
    for line, text in enumerate(read_text(path).rstrip("\n").split("\n"), start=1):
        values = text.rstrip("\r").split("\t")
        if len(values) < len(columns):
            raise DataError(f"{path}:{line}: expected {' <tab> '.join(columns)}, found '{text[:80]}'")
        end = len(values) - after
        merged = [*values[:before], "\t".join(values[before:end]), *values[end:]]
        for name, value in zip(columns, merged, strict=True):
            fields[name].append(value)
        number, title = fields["id"][-1], fields["title"][-1]
        if not (number.isascii() and number.isdigit() and len(number) <= 18):
            raise DataError(f"{path}:{line}: the id '{number}' is not a whole number")
        if not title.strip():
            raise DataError(f"{path}:{line}: item {number} has no title; language models need one: give it one")
        first = seen.setdefault(int(number), line)
        if first != line:
            raise DataError(f"{path}:{line}: item {number} is listed twice, first on line {first}; keep one")
        numbers.append(int(number))
    texts = {name: pa.array(values, pa.string()) for name, values in fields.items() if name != "id"}
    return Info(np.array(numbers, dtype=np.int64), texts)


def read_examples(path: Path, layout: Layout, info: Info) -> ExampleRows:
    """Read one file of examples, block by block, and hold it against ``info.txt``.

    Args:
        path: the file, plain or gzip, UTF-8.
        layout: its columns.
        info: the items.

    Raises:
        DataError: the file cannot be read or contradicts itself or ``info.txt``; names file and row
            (the header is row 1).
    """
    import pyarrow as pa

    blocks: list[ExampleRows] = []
    row = 2
    for batch in _batches(path, layout):
        blocks.append(_Block(path, row, batch, info).read(layout))
        row += len(batch)
    if not blocks:
        raise DataError(f"{path}: there are no examples below the header; check that the file is complete")
    lengths = np.concatenate([np.diff(block.starts) for block in blocks])
    return ExampleRows(
        users=pa.concat_arrays([block.users for block in blocks]),
        targets=np.concatenate([block.targets for block in blocks]),
        starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        items=np.concatenate([block.items for block in blocks]),
        times=joined([block.times for block in blocks]),
        item_times=joined([block.item_times for block in blocks]),
    )


def parse_texts(literal: str) -> list[str]:
    """Read a list literal of quoted texts, as Python prints it, without evaluating anything.

    Args:
        literal: such as ``['a', "b's"]``, at most :data:`LITERAL_LIMIT` characters.

    Raises:
        ValueError: anything else.
    """
    text = literal.strip()
    if len(text) > LITERAL_LIMIT:
        raise ValueError(f"longer than {LITERAL_LIMIT} characters")
    if not (text.startswith("[") and text.endswith("]")):
        raise ValueError("not a list in brackets")
    end = len(text) - 1
    if not text[1:end].strip():
        return []
    values, at = [], 1
    while True:
        found = _TEXT.match(text, at, end)
        if found is None:
            raise ValueError(f"expected a quoted text at character {at + 1}")
        values.append(_ESCAPE.sub(_unescape, found[1] if found[1] is not None else found[2]))
        at = found.end()
        if at == end:
            return values
        if text[at] != ",":
            raise ValueError(f"expected a comma at character {at + 1}")
        at += 1


def _unescape(found: re.Match[str]) -> str:
    for number in found.groups()[:3]:
        if number is not None:
            return chr(int(number, 16))
    if found[4] not in _ESCAPED:
        raise ValueError(f"unknown escape \\{found[4]}")
    return _ESCAPED[found[4]]


class _Block:
    """Some rows of a file, with the number of the first for messages."""

    def __init__(self, path: Path, row: int, batch: pa.RecordBatch, info: Info) -> None:
        self._path, self._row, self._batch, self._info = path, row, batch, info

    def read(self, layout: Layout) -> ExampleRows:
        batch = self._batch
        users = batch["user_id"]
        self._refuse_blank(users, "user_id")
        starts, numbers = self._lists("history_item_id")
        items = self._known(numbers, starts, "history_item_id")
        targets = self._known(self._numbers("item_id"), np.arange(len(batch) + 1), "item_id")
        for name, column in layout.texts.items():
            if column in batch.schema.names:
                texts = self._info.texts[name]
                self._compare(column, texts.take(_indices(targets)), name)
                self._compare_lists(f"history_{column}", starts, texts.take(_indices(items)), name)
        times = item_times = None
        if layout.times:
            times = self._numbers("timestamp")
            time_starts, item_times = self._lists("history_timestamp")
            self._refuse(
                time_starts[1:] - time_starts[:-1] != starts[1:] - starts[:-1],
                "history_timestamp",
                "is not as long as history_item_id",
            )
        return ExampleRows(users, targets.astype(np.int32), starts, items.astype(np.int32), times, item_times)

    def _refuse_blank(self, values: pa.Array, column: str) -> None:
        import pyarrow.compute as pc

        self._refuse(_booleans(pc.equal(pc.utf8_trim_whitespace(values), "")), column, "is empty")

    def _numbers(self, column: str) -> Int64s:
        import pyarrow as pa
        import pyarrow.compute as pc

        values = pc.utf8_trim_whitespace(self._batch[column])
        bad = ~_booleans(pc.match_substring_regex(values, r"^\d{1,18}$"))
        self._refuse(bad, column, "is not a whole number", shown=values)
        return np.asarray(pc.cast(values, pa.int64()), dtype=np.int64)

    def _lists(self, column: str) -> tuple[Int64s, Int64s]:
        """Offsets ``[n + 1]`` and values of a column of list literals of whole numbers."""
        import pyarrow as pa
        import pyarrow.compute as pc

        values = self._batch[column]
        long = np.asarray(pc.utf8_length(values)) > LITERAL_LIMIT
        self._refuse(long, column, f"is longer than {LITERAL_LIMIT} characters")
        empty = _booleans(pc.match_substring_regex(values, r"^\s*\[\s*\]\s*$"))
        self._refuse(empty, column, "is empty: an example needs a history")
        bad = ~_booleans(pc.match_substring_regex(values, _WHOLE_NUMBERS))
        self._refuse(bad, column, "is not a list of whole numbers such as [3, 14]", shown=values)
        lists = pc.split_pattern(pc.utf8_trim(values, characters="[] \t\r\n"), ",")
        numbers = pc.cast(pc.utf8_trim_whitespace(lists.flatten()), pa.int64())
        lengths = np.asarray(pc.list_value_length(lists), dtype=np.int64)
        return np.concatenate([[0], np.cumsum(lengths)]), np.asarray(numbers, dtype=np.int64)

    def _known(self, numbers: Int64s, starts: Int64s, column: str) -> Int64s:
        rows = self._info.rows(numbers)
        unknown = np.flatnonzero(rows < 0)
        if len(unknown):
            row = int(np.searchsorted(starts, unknown[0], side="right")) - 1
            raise self._error(row, column, f"names item {numbers[unknown[0]]}, which info.txt does not list")
        return rows

    def _compare(self, column: str, expected: pa.Array, name: str) -> None:
        import pyarrow.compute as pc

        differ = np.flatnonzero(~_booleans(pc.equal(self._batch[column], expected)))
        if len(differ):
            row = int(differ[0])
            found, wanted = self._batch[column][row].as_py(), expected[row].as_py()
            raise self._error(
                row, column, f"is '{found[:60]}', but info.txt has the {name} '{wanted[:60]}' for item_id"
            )

    def _compare_lists(self, column: str, starts: Int64s, expected: pa.Array, name: str) -> None:
        """Hold a column of list literals of text against the texts that the ids stand for.

        The literals that the texts would give are made and compared as wholes; only literals written
        otherwise are parsed.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        coded = expected.dictionary_encode()
        printed = pa.array([repr(text) for text in coded.dictionary.to_pylist()], pa.string()).take(coded.indices)
        joined = pc.binary_join(pa.ListArray.from_arrays(pa.array(starts, pa.int32()), printed), ", ")
        literals = self._batch[column]
        same = _booleans(pc.equal(pc.binary_join_element_wise("[", joined, "]", ""), literals))
        for row in np.flatnonzero(~same).tolist():
            try:
                texts = parse_texts(literals[row].as_py())
            except ValueError as error:
                raise self._error(row, column, f"is not a list of quoted texts: {error}") from error
            wanted = expected[int(starts[row]) : int(starts[row + 1])].to_pylist()
            if len(texts) != len(wanted):
                raise self._error(row, column, f"has {len(texts)} entries, but history_item_id {len(wanted)}")
            for place, (found, right) in enumerate(zip(texts, wanted, strict=True), start=1):
                if found != right:
                    raise self._error(
                        row, column, f"has '{found[:60]}' in place {place}, but info.txt has the {name} '{right[:60]}'"
                    )

    def _refuse(self, bad: Any, column: str, what: str, *, shown: pa.Array | None = None) -> None:
        rows = np.flatnonzero(bad)
        if len(rows):
            row = int(rows[0])
            found = f" (found '{shown[row].as_py()[:60]}')" if shown is not None else ""
            raise self._error(row, column, f"{what}{found}")

    def _error(self, row: int, column: str, what: str) -> DataError:
        return DataError(f"{self._path}:{self._row + row}: {column} {what}")


def _batches(path: Path, layout: Layout) -> Iterator[pa.RecordBatch]:
    """The file's columns as text, block by block."""
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    there = header_of(path)
    columns = layout.columns(there, path)
    try:
        with pa.input_stream(str(path), compression="gzip" if path.suffix == ".gz" else None) as stream:
            reader = arrow_csv.open_csv(
                stream,
                read_options=arrow_csv.ReadOptions(block_size=_BLOCK, use_threads=False),
                parse_options=arrow_csv.ParseOptions(newlines_in_values=True),
                convert_options=arrow_csv.ConvertOptions(
                    include_columns=columns,
                    column_types=dict.fromkeys(there, pa.string()),
                    strings_can_be_null=False,
                ),
            )
            yield from (batch for batch in reader if len(batch))
    except (pa.ArrowException, OSError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path} cannot be read to its end as CSV in UTF-8: {reason[:200]}") from error


def header_of(path: Path) -> list[str]:
    """Names of the columns of a CSV file, plain or gzip.

    Raises:
        DataError: it cannot be read or is empty.
    """
    try:
        with _open(path) as file:
            header = next(csv.reader(file), None)
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not header:
        raise DataError(f"{path} is empty; expected CSV with a header")
    return header


def read_text(path: Path) -> str:
    """The whole of a text in UTF-8, plain or gzip.

    Raises:
        DataError: empty, cut short or in another encoding.
    """
    try:
        with _open(path) as file:
            text = file.read()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text in UTF-8 ({error}); convert it") from error
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read to its end: {error}; get it again") from error
    if not text.strip():
        raise DataError(f"{path} is empty")
    return text


def _open(path: Path) -> io.TextIOBase:
    """Open a plain or compressed text; a byte-order mark is no part of it."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def joined(arrays: Sequence[Int64s | None]) -> Int64s | None:
    """The arrays one after the other, without those that are not there."""
    there = [array for array in arrays if array is not None]
    return np.concatenate(there) if there else None


def _indices(rows: Int64s) -> pa.Array:
    import pyarrow as pa

    return pa.array(rows, pa.int64())


def _booleans(values: Any) -> Any:
    return np.asarray(values.to_numpy(zero_copy_only=False), dtype=bool)
