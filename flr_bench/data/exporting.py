"""Prepared data in the forms that other people's code reads, so that it runs on exactly the same examples.

A folder holds the examples of train, valid and test in one of :data:`FORMATS`, a ``manifest.json`` (checksum
of the data, recipe, counts, what the form cannot carry, sha256 of every file) and a ``README.txt`` that says
how to hand rankings back (``flr-bench score``).  Histories are cut to the last ``max_history`` items; the
order of examples is that of time.

======================  =====================================================================================
form                    files
======================  =====================================================================================
``recbole``             ``NAME.train.inter``, ``NAME.valid.inter``, ``NAME.test.inter`` (RecBole's "benchmark
                        files": ``user_id:token``, ``item_id_list:token_seq``, ``item_id:token``,
                        ``timestamp:float``, ``example_id:token``), ``NAME.item`` (every candidate, with
                        ``item_title:token_seq``), ``NAME.inter`` (all interactions) and ``NAME.yaml``, the
                        configuration with which RecBole 1.2.1 takes these files as they are
``latentr3_csv``        ``train.csv``, ``valid.csv``, ``test.csv`` with LatentR3's eleven columns, lists as Python
                        literals, and ``info.txt`` (``title <tab> id``); ``test_ids.txt`` has the id of the
                        example on each row of ``test.csv``
``minionerec``          the same with MiniOneRec's columns; ``info.txt`` is ``semantic id <tab> title <tab> id``,
                        ``item.json`` maps ids to titles and attributes
``parquet``             ``interactions.parquet`` (user, item, title, timestamp, part), ``catalog.parquet``,
                        ``users.parquet`` and per part ``PART.parquet`` (example, user, history, target,
                        timestamp); lists are lists
======================  =====================================================================================

What a form cannot carry stands in its manifest under ``not_carried``: in ``latentr3_csv`` ratings (prepared
data has none: the column is empty, the list too), in ``minionerec`` all times (the order of rows stands for
them) and, in data without them, semantic ids (the two columns are left out and the first field of
``info.txt`` is empty: a made-up one would pass for real).  Where all item keys are whole numbers they are the
ids of both CSV forms; otherwise an item's id is its row in the catalog, and ``items.csv`` maps it to its key.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from flr_bench.errors import DataError, FlrBenchError, UnknownNameError, UsageError
from flr_bench.interface import Examples, Int64s

if TYPE_CHECKING:
    import pyarrow as pa

    from flr_bench.data.prepared import PreparedData

__all__ = ["FORMATS", "Choice", "export"]

WHOLE = 2**31
"""A history longer than any: what ``max_history`` means where nothing is cut off."""

_PARTS = ("train", "valid", "test")
_NUMBER = re.compile(r"0|[1-9]\d{0,17}")
# What pandas reads as a missing value, RecBole's own name of the padding, and what separates its fields.
_NOT_A_TOKEN = re.compile(
    r'(?s).*[\s"].*|\[PAD\]|#N/A|#N/A N/A|#NA|-1\.#IND|-1\.#QNAN|-?NaN|-?nan|1\.#IND|1\.#QNAN|<NA>|N/A|NA|NULL'
    r"|None|n/a|null|"
)


@dataclass(frozen=True)
class Choice:
    """Which examples are exported.

    Attributes:
        max_history: items of a history at most, the last ones; ``None`` for whole histories.
        test_examples: test examples, spread over all test users as a suite does it; ``None`` takes all.
        valid_examples: valid examples, likewise.
        named: where the choice comes from, for example ``"suite main@1, profile cpu"``.
    """

    max_history: int | None = 10
    test_examples: int | None = None
    valid_examples: int | None = None
    named: str = "all examples"


@dataclass(frozen=True, eq=False)
class Content:
    """What is written: prepared data and its chosen examples.

    Attributes:
        name: the data set's name.
        data: the prepared data.
        parts: examples by part, histories cut.
    """

    name: str
    data: PreparedData
    parts: Mapping[str, Examples]

    @property
    def keys(self) -> Sequence[str]:
        """Key of each item."""
        return self.data.catalog.keys

    @property
    def titles(self) -> Sequence[str]:
        """Title of each item."""
        return self.data.catalog.titles

    @cached_property
    def numeric_keys(self) -> bool:
        """Whether every item's key is a whole number in its usual form, so that it can serve as its id."""
        return all(_NUMBER.fullmatch(key) for key in self.keys)

    @cached_property
    def item_ids(self) -> list[str]:
        """Id of each item in forms that want numbers."""
        return list(self.keys) if self.numeric_keys else [str(row) for row in range(len(self.keys))]

    @cached_property
    def file_name(self) -> str:
        """The name as part of file names."""
        return re.sub(r"[^\w.-]+", "-", self.name).strip("-.") or "data"

    def refuse_empty_histories(self, form: str) -> None:
        """For forms whose readers take no example without a history.

        Raises:
            DataError: there is one.
        """
        for part, examples in self.parts.items():
            empty = int((examples.history_lengths == 0).sum())
            if empty:
                raise DataError(
                    f"{self.name}: {empty} {part} examples have an empty history, which the form {form} cannot carry; "
                    "export with --to parquet"
                )

    def refuse_line_breaks(self, form: str) -> None:
        """For forms with a line of tab-separated fields per item.

        Raises:
            DataError: a title holds a tab or a line break.
        """
        for key, title in zip(self.keys, self.titles, strict=True):
            if re.search(r"[\t\r\n]", title):
                raise DataError(
                    f"{self.name}: the title of item '{key}' holds a tab or a line break, which info.txt of the form "
                    f"{form} cannot carry; import the data with clean titles, or export with --to parquet"
                )


@dataclass(frozen=True)
class Form:
    """A form of export.

    Attributes:
        write: writes into an empty folder and returns what the form could not carry, one sentence each.
        source: the source that ``flr-bench data import`` reads it back with.
        options: the options to read it back with, so that nothing is changed on the way.
        file: what to read back below the folder, with ``{name}`` for the data set's; ``"."`` for all of it.
        answer: how a reader finds an example's id and an item's key, for the README.
    """

    write: Callable[[Content, Path], list[str]]
    source: str
    answer: str
    options: Mapping[str, Any] = field(default_factory=dict)
    file: str = "."


def export(data: PreparedData, name: str, to: str, folder: Path, choice: Choice | None = None) -> dict[str, Any]:
    """Write prepared data for other people's code.

    Args:
        data: the data set.
        name: its name, for file names and the manifest.
        to: one of :data:`FORMATS`.
        folder: where to; made, and must be empty if it is there.  It is there whole or not at all.
        choice: which examples; by default all, with the last ten items of each history.

    Returns:
        The manifest.

    Raises:
        UnknownNameError: there is no such form.
        UsageError: the folder holds something.
        DataError: the data has something that the form cannot carry, such as a key with a space.
        FlrBenchError: the folder cannot be written.
    """
    if to not in FORMATS:
        raise UnknownNameError("form of export", to, FORMATS)
    form, choice = FORMATS[to], choice or Choice()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is there and not empty; name another folder with --out")
    content = _chosen(data, name, choice)
    temporary = folder.with_name(f".making-{uuid.uuid4().hex}")
    try:
        temporary.mkdir(parents=True)
        not_carried = form.write(content, temporary)
        manifest = _manifest(content, to, choice, not_carried)
        (temporary / "README.txt").write_text(_readme(content, manifest), encoding="utf-8")
        manifest["files"] = {path.name: _sha256(path) for path in sorted(temporary.iterdir())}
        text = json.dumps(manifest, indent=2, ensure_ascii=False)
        (temporary / "manifest.json").write_text(text + "\n", encoding="utf-8")
        if folder.is_dir():
            folder.rmdir()
        temporary.replace(folder)
    except OSError as error:
        reason = error.strerror or str(error)
        raise FlrBenchError(f"cannot write to {folder}: {reason}; mend that or name another with --out") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


def _chosen(data: PreparedData, name: str, choice: Choice) -> Content:
    length = choice.max_history or WHOLE
    split = data.split(max_history=length, train_examples=None, valid_examples=choice.valid_examples, seed=0)
    test = data.test_selection(choice.test_examples, max_history=length)
    return Content(name, data, {"train": split.train, "valid": split.valid, "test": test})


# ---------------------------------------------------------------- recbole
def _write_recbole(content: Content, folder: Path) -> list[str]:
    """RecBole's atomic files.

    Its reader splits at tabs, lists at spaces, and takes a list of words for missing values; keys that
    these would change are refused rather than renamed.  Titles are quoted as CSV where they hold a
    quote, which RecBole's reader (pandas) understands.
    """
    content.refuse_empty_histories("recbole")
    name, keys, users = content.file_name, content.keys, content.data.user_keys
    _refuse_tokens(content, keys, "item")
    _refuse_tokens(content, users, "user")
    for part, examples in content.parts.items():
        rows = (
            f"{users[user]}\t{' '.join([keys[i] for i in history])}\t{keys[target]}\t{time}\t{example}\n"
            for example, user, target, time, history in _rows(examples)
        )
        header = "user_id:token\titem_id_list:token_seq\titem_id:token\ttimestamp:float\texample_id:token\n"
        _write_lines(folder / f"{name}.{part}.inter", header, rows)
    every = content.data.all_interactions
    log = zip(every.users.tolist(), every.items.tolist(), every.timestamps.tolist(), strict=True)
    lines = (f"{users[user]}\t{keys[item]}\t{time}\n" for user, item, time in log)
    _write_lines(folder / f"{name}.inter", "user_id:token\titem_id:token\ttimestamp:float\n", lines)
    items = (f"{key}\t{_quoted(title)}\n" for key, title in zip(keys, content.titles, strict=True))
    _write_lines(folder / f"{name}.item", "item_id:token\titem_title:token_seq\n", items)
    (folder / f"{name}.yaml").write_text(_recbole_config(content), encoding="utf-8")
    return _given(content, f"{name}.inter")


def _refuse_tokens(content: Content, keys: Iterable[str], what: str) -> None:
    for key in keys:
        if _NOT_A_TOKEN.fullmatch(key):
            raise DataError(
                f"{content.name}: RecBole cannot read the key '{key}' of a {what} (white space, a quote or a word for "
                "a missing value); export with --to parquet"
            )


def _recbole_config(content: Content) -> str:
    longest = max(int(examples.history_lengths.max(initial=1)) for examples in content.parts.values())
    return f"""\
# RecBole 1.2.1 on these files: data_path is the folder above a folder called {content.file_name} that holds them.
# Evaluated are exactly the exported examples, each against every item of {content.file_name}.item; sequential
# models of RecBole do not mask the items of the history.
field_separator: "\\t"
seq_separator: " "
USER_ID_FIELD: user_id
ITEM_ID_FIELD: item_id
LIST_SUFFIX: _list
ITEM_LIST_LENGTH_FIELD: item_length
MAX_ITEM_LIST_LENGTH: {longest}
benchmark_filename: [train, valid, test]
alias_of_item_id: [item_id_list]
load_col:
  inter: [user_id, item_id_list, item_id, example_id]
  item: [item_id]
train_neg_sample_args: ~
loss_type: CE
eval_args: {{group_by: user, order: TO, mode: full, split: {{LS: valid_and_test}}}}
metrics: [Recall, NDCG, MRR, Hit]
topk: [1, 5, 10]
valid_metric: NDCG@10
"""


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if re.search(r'["\t\r\n]', text) else text


# ---------------------------------------------------------------- CSV of language-model methods
def _write_latentr3(content: Content, folder: Path) -> list[str]:
    """LatentR3's columns; ``rating`` is empty and ``history_rating`` an empty list, since there are no ratings."""
    content.refuse_empty_histories("latentr3_csv")
    content.refuse_line_breaks("latentr3_csv")
    ids, keys, titles, users = content.item_ids, content.keys, content.titles, content.data.user_keys
    shown_keys, shown_titles = [repr(key) for key in keys], [repr(title) for title in titles]
    header = ["user_id", "item_asins", "item_asin", "history_item_id", "item_id", "history_item_title", "item_title"]
    header += ["history_rating", "rating", "history_timestamp", "timestamp"]
    guessed = 0
    for part, examples in content.parts.items():
        times, unknown = history_times(content.data, examples)
        guessed += unknown
        rows = (
            [
                users[user], _list(shown_keys, history), keys[target], _list(ids, history), ids[target],
                _list(shown_titles, history), titles[target], "[]", "", str(before), time,
            ]
            for (_, user, target, time, history), before in zip(_rows(examples), times, strict=True)
        )  # fmt: skip
        _write_csv(folder / f"{part}.csv", header, rows)
    lines = (f"{title}\t{number}\n" for title, number in zip(titles, ids, strict=True))
    _write_lines(folder / "info.txt", "", lines)
    notes = ["ratings: the columns rating and history_rating are empty, prepared data has none"]
    if guessed:
        notes.append(
            f"times of {guessed} history items: prepared data does not know them, the time of the next item that it "
            "knows stands there"
        )
    return notes + _write_ids(content, folder)


def _write_minionerec(content: Content, folder: Path) -> list[str]:
    """MiniOneRec's columns; those of semantic ids only where every item has one."""
    content.refuse_empty_histories("minionerec")
    content.refuse_line_breaks("minionerec")
    ids, titles, users = content.item_ids, content.titles, content.data.user_keys
    semantic = content.data.catalog.attributes.get("semantic_id")
    known = semantic is not None and all(semantic)
    sids = semantic if semantic is not None and known else [""] * len(titles)
    shown_titles, shown_sids = [repr(title) for title in titles], [repr(sid) for sid in sids]
    header = ["user_id", "history_item_title", "item_title", "history_item_id", "item_id"]
    header += ["history_item_sid", "item_sid"] if known else []
    for part, examples in content.parts.items():
        rows = (
            [users[user], _list(shown_titles, history), titles[target], _list(ids, history), ids[target]]
            + ([_list(shown_sids, history), sids[target]] if known else [])
            for _, user, target, _, history in _rows(examples)
        )
        _write_csv(folder / f"{part}.csv", header, rows)
    lines = (f"{sid}\t{title}\t{number}\n" for sid, title, number in zip(sids, titles, ids, strict=True))
    _write_lines(folder / "info.txt", "", lines)
    others = {name: values for name, values in content.data.catalog.attributes.items() if name != "semantic_id"}
    details = {
        number: {"title": title, **{name: values[row] for name, values in others.items()}}
        for row, (number, title) in enumerate(zip(ids, titles, strict=True))
    }
    text = json.dumps(details, indent=1, ensure_ascii=False)
    (folder / "item.json").write_text(text + "\n", encoding="utf-8")
    notes = ["times: the form has none, the order of rows stands for the order of time"]
    if not known:
        notes.append("semantic ids: this data has none, so the columns history_item_sid and item_sid are left out")
    return notes + _write_ids(content, folder)


def _write_ids(content: Content, folder: Path) -> list[str]:
    """What maps rows of the CSV forms back to examples and, where ids are not keys, ids to keys."""
    _write_lines(folder / "test_ids.txt", "", (f"{example}\n" for example in content.parts["test"].ids.tolist()))
    if content.numeric_keys:
        return []
    _write_csv(folder / "items.csv", ["id", "key"], zip(content.item_ids, content.keys, strict=True))
    return ["item keys: some are no numbers, so an item's id is its row in the catalog; items.csv maps ids to keys"]


def history_times(data: PreparedData, examples: Examples) -> tuple[Iterator[list[int]], int]:
    """The time of every item in the examples' histories.

    Prepared examples keep no times of their histories, the log does.  A history that is the stretch of its
    user's interactions right before the target has that stretch's times.  Any other (a source may bring
    histories that its log does not have whole) is walked from its end: each item has the latest time at
    which the user had it, up to that of the item after it; one that the log does not know has the time of
    the item after it.

    Args:
        data: the prepared data.
        examples: some of its examples.

    Returns:
        Per example its items' times, in the order of the history, and the number of times that the log does
        not know.
    """
    offsets, places = _flat(examples)
    log = _KnownLog(data)
    times, exact = log.times_before(examples, places)
    unknown = log.walk(examples, places, offsets, times, np.flatnonzero(~exact))
    return (times[start:stop].tolist() for start, stop in pairwise(offsets.tolist())), unknown


def _flat(examples: Examples) -> tuple[Int64s, Int64s]:
    """Offsets ``[n + 1]`` of the histories laid end to end, and where in ``examples.items`` each item lies ``[m]``."""
    lengths = examples.history_lengths
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    places = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - examples.starts, lengths)
    return offsets, places.astype(np.int64)


class _KnownLog:
    """What is known to have happened when: the log and the targets that are not in it, user after user."""

    def __init__(self, data: PreparedData) -> None:
        every, later = data.all_interactions, [data.valid, data.test]
        self._n_items = len(data.catalog)
        users = [every.users, *(part.users for part in later)]
        items = [every.items, *(part.targets for part in later)]
        times = np.concatenate([every.timestamps, *(part.timestamps for part in later)]).astype(np.int64)
        self._moments = np.unique(times)
        pairs = np.concatenate(users).astype(np.int64) * self._n_items + np.concatenate(items)
        keys = self._keys(pairs, times)
        # A target that the log has comes after its row there: the first of equal keys is kept.
        kept = np.sort(np.unique(keys, return_index=True)[1])
        order = kept[np.lexsort((kept, times[kept], pairs[kept] // self._n_items))]
        self._pairs, self._times = pairs[order], times[order]
        self._by_key = np.argsort(keys[order], kind="stable")
        self._sorted_keys = keys[order][self._by_key]

    def _keys(self, pairs: Int64s, times: Int64s) -> Int64s:
        """A number per user, item and time."""
        keys: Int64s = pairs * (len(self._moments) + 1) + np.searchsorted(self._moments, times)
        return keys

    def times_before(self, examples: Examples, places: Int64s) -> tuple[Int64s, npt.NDArray[np.bool_]]:
        """Times ``[m]`` of the interactions right before each target, and whether these are its history ``[n]``."""
        lengths, users = examples.history_lengths, examples.users.astype(np.int64)
        keys = self._keys(users * self._n_items + examples.targets, examples.timestamps)
        found = np.minimum(np.searchsorted(self._sorted_keys, keys), len(self._sorted_keys) - 1)
        exact = self._sorted_keys[found] == keys
        begins = self._by_key[found] - lengths
        exact &= begins >= 0
        of_example = np.repeat(np.arange(len(examples)), lengths)
        within = np.arange(len(places)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        rows = np.maximum(begins, 0)[of_example] + within
        differs = self._pairs[rows] != users[of_example] * self._n_items + examples.items[places]
        exact &= np.bincount(of_example, weights=differs, minlength=len(examples)) == 0
        return self._times[rows], exact

    def walk(self, examples: Examples, places: Int64s, offsets: Int64s, times: Int64s, rows: Int64s) -> int:
        """Fill in the times of the examples at ``rows``, from the end of each; returns how many nobody knows."""
        unknown = 0
        for row in rows.tolist():
            later = int(examples.timestamps[row])
            user = int(examples.users[row]) * self._n_items
            for at in range(int(offsets[row + 1]) - 1, int(offsets[row]) - 1, -1):
                pair = np.array([user + int(examples.items[places[at]])])
                key = self._keys(pair, np.array([later + 1]))
                found = int(np.searchsorted(self._sorted_keys, key)[0]) - 1
                place = self._by_key[found] if found >= 0 else -1
                if place >= 0 and self._pairs[place] == pair[0]:
                    later = int(self._times[place])
                else:
                    unknown += 1
                times[at] = later
        return unknown


def _list(shown: Sequence[str], history: Sequence[int]) -> str:
    return f"[{', '.join([shown[i] for i in history])}]"


# ---------------------------------------------------------------- parquet
def _write_parquet(content: Content, folder: Path) -> list[str]:
    """Columns of plain types; user and item are keys, dictionary-encoded."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    data, catalog = content.data, content.data.catalog
    keys, titles = pa.array(catalog.keys, pa.string()), pa.array(catalog.titles, pa.string())
    users = pa.array(data.user_keys, pa.string())
    every = data.all_interactions
    log = {
        "user": _coded(every.users, users),
        "item": _coded(every.items, keys),
        "title": titles.take(pa.array(every.items)).dictionary_encode(),
        "timestamp": pa.array(every.timestamps),
        "part": _coded(np.asarray(data.parts, dtype=np.int32), pa.array(_PARTS, pa.string())),
    }
    tables = {
        "interactions": log,
        "catalog": {
            "item": keys,
            "title": titles,
            **{k: pa.array(v, pa.string()) for k, v in catalog.attributes.items()},
        },
        "users": {"user": users},
    }
    for part, examples in content.parts.items():
        offsets, places = _flat(examples)
        history = _coded(examples.items[places], keys).cast(pa.string())
        tables[part] = {
            "example": pa.array(examples.ids),
            "user": _coded(examples.users, users),
            "history": pa.LargeListArray.from_arrays(pa.array(offsets), history),
            "target": _coded(examples.targets, keys),
            "timestamp": pa.array(examples.timestamps),
        }
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet", compression="zstd")
    return _given(content, "interactions.parquet")


def _given(content: Content, log: str) -> list[str]:
    """For forms that are read back from the log: what that leaves out of data that bring their own split."""
    if ((content.data.manifest.get("recipe") or {}).get("split") or {}).get("name") != "given":
        return []
    return [
        f"the given split, to whoever reads {log} back: it holds the training interactions, the examples stand in the "
        "files of the parts"
    ]


def _coded(codes: Any, values: pa.Array) -> pa.DictionaryArray:
    import pyarrow as pa

    return pa.DictionaryArray.from_arrays(pa.array(np.asarray(codes, dtype=np.int32)), values)


FORMATS: Mapping[str, Form] = {
    "recbole": Form(
        _write_recbole,
        "recbole_atomic",
        "The field example_id of the .test.inter file is the example's id, item_id the item's key.",
        {"clean_titles": False, "quoting": "double"},
        "{name}.inter",
    ),
    "latentr3_csv": Form(
        _write_latentr3,
        "latentr3_csv",
        "Line n of test_ids.txt is the id of the example on the n-th row of test.csv below the header.",
    ),
    "minionerec": Form(
        _write_minionerec,
        "minionerec_csv",
        "Line n of test_ids.txt is the id of the example on the n-th row of test.csv below the header.",
    ),
    "parquet": Form(
        _write_parquet,
        "table",
        "The column 'example' of test.parquet is the example's id, history and target hold item keys.",
        {"clean_titles": False},
        "interactions.parquet",
    ),
}
"""The forms of export, by the name that ``--to`` takes."""


# ---------------------------------------------------------------- shared
def _rows(examples: Examples) -> Iterator[tuple[int, int, int, int, list[int]]]:
    """Per example id, user, target, time and history; blocks keep memory small."""
    block = 4096
    for begin in range(0, len(examples), block):
        part = examples.take(np.arange(begin, min(begin + block, len(examples))))
        histories = (part.history(i).tolist() for i in range(len(part)))
        columns = (part.ids, part.users, part.targets, part.timestamps)
        yield from zip(*(column.tolist() for column in columns), histories, strict=True)


def _write_lines(path: Path, header: str, lines: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(header)
        file.writelines(lines)


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _manifest(content: Content, to: str, choice: Choice, not_carried: list[str]) -> dict[str, Any]:
    from flr_bench import __version__

    manifest, recipe = content.data.manifest, dict(content.data.manifest.get("recipe") or {})
    source = dict(manifest.get("source") or {})
    return {
        "format": 1,
        "form": to,
        "read_back_with": FORMATS[to].source,
        "read_back_options": dict(FORMATS[to].options),
        "read_back_file": FORMATS[to].file.format(name=content.file_name),
        "data": content.name,
        "checksum": content.data.checksum,
        "source": {key: source.get(key) for key in ("title", "license", "citation")},
        "filters": recipe.get("filters"),
        "split": recipe.get("split"),
        "max_history": choice.max_history,
        "choice": choice.named,
        "counts": {
            "users": len(content.data.user_keys),
            "items": len(content.keys),
            **{part: len(examples) for part, examples in content.parts.items()},
        },
        "remarks": list(manifest.get("remarks") or ()),
        "not_carried": not_carried,
        "flr_bench": __version__,
    }


def _readme(content: Content, manifest: Mapping[str, Any]) -> str:
    counts, source, form = manifest["counts"], manifest["source"], FORMATS[manifest["form"]]
    cut = manifest["max_history"]
    lost = "".join(f"Of the data: {line}.\n" for line in manifest["remarks"])
    lost += "".join(f"Not carried: {line}.\n" for line in manifest["not_carried"])
    return f"""\
{content.name}: {source["title"]}
Form: {manifest["form"]}, read back with the source {manifest["read_back_with"]}.
Licence: {source["license"]}
Citation: {source["citation"]}
Checksum of the prepared data: {manifest["checksum"]}
Split: {json.dumps(manifest["split"], sort_keys=True)}
Examples: {counts["train"]} train, {counts["valid"]} valid, {counts["test"]} test ({manifest["choice"]}); histories \
{"whole" if cut is None else f"of at most {cut} items"}, oldest first.
Candidates: all {counts["items"]} items.
{lost}
To compare a method of yours, rank the test examples and write one list per example, best first:
a parquet or JSON-lines file with the columns example and items (lists of item keys; titles, lists of titles,
are taken too) and, if you like, scores; or a CSV file with a line example,item[,score] per recommended item.
{form.answer}
  flr-bench score --data {content.name} --ranking FILE --name YOUR-METHOD --suite SUITE --profile PROFILE
checks the file and puts the method into the suite's tables, marked as external.
"""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
