"""Reading rankings out of files: parquet, CSV or JSON lines, checked row by row.

Two layouts, each with any of the endings ``.parquet``, ``.csv`` (also ``.tsv``), ``.jsonl``:

- a row per example: ``example`` (its id), ``items`` (list of item keys, best first) or ``titles``, and
  if there are any ``scores`` (as many numbers); in CSV lists are written as JSON;
- a row per recommendation: ``example``, ``item`` or ``title``, and if there are any ``score``; the rows
  of an example stand together, best first.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flr_bench.errors import DataError
from flr_bench.interface import Catalog, Examples, Ranking

__all__ = ["Answers", "read_ranking"]

Record = tuple[str, Mapping[str, Any]]
"""Where a row stands in its file (``line 3``), and its values by column."""

_FIELD_LIMIT = 16 << 20
_COLUMNS = {"example_id": "example"}


@dataclass(frozen=True, eq=False)
class Answers:
    """What a file holds.

    Attributes:
        ranking: ``[n, k]``, in the order of the examples asked for.
        rows: for each example where its answer stands in the file.
        shared_titles: recommended titles that several items have, over all lists.
        scored: whether the file has scores.
    """

    ranking: Ranking
    rows: list[str]
    shared_titles: int
    scored: bool


@dataclass
class _Answer:
    """One example's list as the file has it."""

    where: str
    example: int
    titles: bool
    names: list[str]
    scores: list[float] | None


def read_ranking(path: Path, examples: Examples, catalog: Catalog, k: int, *, seed: int = 0) -> Answers:
    """Read and check a ranking of exactly the given examples.

    A title that several items have stands for all of them: they take places one after another, in the
    order of a permutation of the catalog drawn by ``seed``, as ties between items fall everywhere here,
    and all with the title's score.  Lists longer than ``k`` are cut.

    Args:
        path: the file.
        examples: what should have been ranked.
        catalog: the candidates.
        k: length of the lists that are kept.
        seed: draws the order of items that share a title.

    Raises:
        DataError: the file cannot be read; an example is missing, unknown or answered twice; an item or
            title is unknown or comes twice in a list; a list is too short; scores are not finite, rise, or
            are not as many as items.  One line with file and row.
    """
    places = {int(example): row for row, example in enumerate(examples.ids)}
    items = np.full((len(examples), k), -1, dtype=np.int32)
    scores = np.zeros((len(examples), k), dtype=np.float32)
    rows = [""] * len(examples)
    resolve = _Resolver(path, catalog, seed)
    scored: bool | None = None
    for answer in _answers(path):
        at = places.get(answer.example)
        if at is None:
            raise DataError(
                f"{path}:{answer.where}: example {answer.example} is none of the {len(examples)} test examples that "
                "the suite ranks; export them with flr-bench data export --suite"
            )
        if rows[at]:
            raise DataError(
                f"{path}:{answer.where}: example {answer.example} is answered twice, first at {rows[at]}; keep one"
            )
        if scored is not None and scored != (answer.scores is not None):
            raise DataError(f"{path}:{answer.where}: scores are given for some examples only; give all or none")
        scored = answer.scores is not None
        rows[at] = answer.where
        found, values = resolve(answer, k)
        items[at] = found
        # Without scores the place itself is one: the first item gets 0, the next -1.
        scores[at] = values if values is not None else -np.arange(k, dtype=np.float32)
    missing = [row for row, where in enumerate(rows) if not where]
    if missing:
        raise DataError(
            f"{path}: {len(missing)} of {len(examples)} examples are not answered, {examples.ids[missing[0]]} for one; "
            "rank every test example"
        )
    return Answers(Ranking(items, scores), rows, resolve.shared_titles, bool(scored))


class _Resolver:
    """From an answer's names to catalog items."""

    def __init__(self, path: Path, catalog: Catalog, seed: int) -> None:
        self._path, self._catalog, self._seed = path, catalog, seed
        self._items = {key: [item] for item, key in enumerate(catalog.keys)}
        self._titles: dict[str, list[int]] = {}
        self.shared_titles = 0

    def _title_items(self) -> dict[str, list[int]]:
        """The items of each title, in the order in which ties fall."""
        if not self._titles:
            order = np.random.default_rng([self._seed, len(self._catalog)]).permutation(len(self._catalog))
            for item in order.tolist():
                self._titles.setdefault(self._catalog.titles[item], []).append(item)
        return self._titles

    def __call__(self, answer: _Answer, k: int) -> tuple[list[int], list[float] | None]:
        """The first ``k`` items and their scores."""
        known = self._title_items() if answer.titles else self._items
        what = "title" if answer.titles else "item"
        where = f"{self._path}:{answer.where}: example {answer.example}"
        _check_scores(where, answer)
        found: list[int] = []
        scores: list[float] = []
        seen: set[str] = set()
        for place, name in enumerate(answer.names):
            if len(found) >= k:
                break
            if name in seen:
                raise DataError(f"{where}: the {what} '{name}' is recommended twice; a list has distinct ones")
            seen.add(name)
            its = known.get(name)
            if its is None:
                raise DataError(
                    f"{where}: no {what} '{name}' is in the catalog of {len(self._catalog)} items{_hint(what)}"
                )
            self.shared_titles += len(its) > 1
            found += its
            scores += [answer.scores[place]] * len(its) if answer.scores is not None else []
        if len(found) < k:
            raise DataError(f"{where}: the list has {len(found)} items, {k} are needed; rank more")
        return found[:k], scores[:k] if answer.scores is not None else None


def _hint(what: str) -> str:
    return "; item keys are taken as the export has them" if what == "item" else "; titles are compared as they are"


def _check_scores(where: str, answer: _Answer) -> None:
    scores = answer.scores
    if scores is None:
        return
    if len(scores) != len(answer.names):
        raise DataError(f"{where}: {len(answer.names)} recommendations but {len(scores)} scores; give one for each")
    for place, value in enumerate(scores, start=1):
        if not math.isfinite(value) or abs(value) > float(np.finfo(np.float32).max):
            raise DataError(f"{where}: the score at place {place} is {value}; scores are finite float32 numbers")
    for place, (before, value) in enumerate(itertools.pairwise(scores), start=2):
        if value > before:
            raise DataError(
                f"{where}: the score at place {place}, {value:g}, is larger than the one before it, {before:g}; "
                "order lists from best to worst"
            )


# ---------------------------------------------------------------- files
def _answers(path: Path) -> Iterator[_Answer]:
    """One answer per example, whichever layout the file has."""
    readers: dict[str, Callable[[Path], Iterator[Record]]] = {
        ".parquet": _parquet,
        ".csv": _csv,
        ".tsv": _csv,
        ".jsonl": _json_lines,
        ".ndjson": _json_lines,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: a ranking is a file that ends in {', '.join(sorted(readers))}; convert it")
    records = reader(path)
    first = next(records, None)
    if first is None:
        raise DataError(f"{path} holds no rows; write one list per test example")
    records = itertools.chain([first], records)
    named = [name for name in ("items", "titles", "item", "title") if name in first[1]]
    if len(named) != 1 or "example" not in first[1]:
        raise DataError(
            f"{path}: expected the column 'example' and one of 'items', 'titles' (lists) or 'item', 'title' (one a "
            f"row), found {', '.join(map(str, first[1]))}"
        )
    yield from _lists(path, records, named[0]) if named[0] in ("items", "titles") else _singles(path, records, named[0])


def _lists(path: Path, records: Iterable[Record], column: str) -> Iterator[_Answer]:
    for where, record in records:
        names = _list(path, where, column, record.get(column))
        scores = record.get("scores")
        values = None
        if scores not in (None, ""):
            values = [_number(path, where, value) for value in _list(path, where, "scores", scores)]
        texts = [_text(path, where, column, name) for name in names]
        yield _Answer(where, _example(path, where, record), column == "titles", texts, values)


def _singles(path: Path, records: Iterable[Record], column: str) -> Iterator[_Answer]:
    """Rows of one example that stand together are its list; its first row stands for it."""
    current: _Answer | None = None
    for where, record in records:
        example = _example(path, where, record)
        score = record.get("score")
        scores = None if score in (None, "") else [_number(path, where, score)]
        name = _text(path, where, column, record.get(column))
        if current is None or current.example != example:
            if current is not None:
                yield current
            current = _Answer(where, example, column == "title", [name], scores)
            continue
        if (scores is None) != (current.scores is None):
            raise DataError(f"{path}:{where}: example {example} has scores for some items only; give all or none")
        current.names.append(name)
        if current.scores is not None and scores is not None:
            current.scores += scores
    if current is not None:
        yield current


def _parquet(path: Path) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        row = 0
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=4096):
                names = [_COLUMNS.get(name, name) for name in batch.schema.names]
                for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    row += 1
                    yield f"row {row}", dict(zip(names, values, strict=True))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as parquet: {' '.join(str(error).split())}") from error


def _csv(path: Path) -> Iterator[Record]:
    csv.field_size_limit(_FIELD_LIMIT)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
            header = [_COLUMNS.get(name.strip(), name.strip()) for name in next(reader, [])]
            for values in reader:
                where = f"line {reader.line_num}"
                if not values:
                    continue
                if len(values) != len(header):
                    raise DataError(f"{path}:{where}: {len(values)} fields, the header has {len(header)}")
                yield where, dict(zip(header, values, strict=True))
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as CSV: {error}") from error


def _json_lines(path: Path) -> Iterator[Record]:
    line = 0
    try:
        with path.open(encoding="utf-8-sig") as file:
            for line, text in enumerate(file, start=1):
                if not text.strip():
                    continue
                record = json.loads(text)
                if not isinstance(record, dict):
                    raise DataError(f"{path}:line {line}: expected a JSON object such as {{'example': 1, 'items': []}}")
                yield f"line {line}", {_COLUMNS.get(str(name), str(name)): value for name, value in record.items()}
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}:line {max(line, 1)}: cannot be read as JSON lines: {error}") from error


def _example(path: Path, where: str, record: Mapping[str, Any]) -> int:
    value = record.get("example")
    try:
        if isinstance(value, bool) or value is None or (isinstance(value, float) and not value.is_integer()):
            raise ValueError(value)
        return int(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{path}:{where}: the example '{value}' is no whole number") from error


def _list(path: Path, where: str, column: str, value: Any) -> list[Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise DataError(f'{path}:{where}: {column} must be a JSON list such as ["a", "b"]: {error}') from error
    if not isinstance(value, list):
        raise DataError(f"{path}:{where}: {column} must be a list, not {'missing' if value is None else repr(value)}")
    return value


def _number(path: Path, where: str, value: Any) -> float:
    try:
        if isinstance(value, bool):
            raise ValueError(value)
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{path}:{where}: the score '{value}' is no number") from error


def _text(path: Path, where: str, column: str, value: Any) -> str:
    """A key or title; a key that JSON or parquet has as a whole number is its usual digits."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise DataError(f"{path}:{where}: {column} holds {value!r}, expected text")
    return value
