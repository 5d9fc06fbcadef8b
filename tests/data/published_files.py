"""Small folders in the shape of LatentR3's and MiniOneRec's, written row by row as their scripts do."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TITLES = ("Plain", "It's here", 'He said "no"', "Tab\\and, comma", "Plain", "<span class=", "Größe 5", "Never used")
DAY = 86_400
Row = tuple[str, Sequence[int], int, Sequence[int], int]
"""User, history, target, times of the history, time of the target."""

# Users a to d; "d" appears in test only, "c" has one item before valid and one on the day of its first target.
VALID: tuple[Row, ...] = (
    ("a", (0, 1, 2), 3, (1, 2, 5), 10),
    ("a", (0, 1, 2, 3), 4, (1, 2, 5, 10), 11),
    ("b", (5, 1), 0, (3, 4), 11),
    ("c", (2, 6), 1, (7, 10), 12),
)
TEST: tuple[Row, ...] = (
    ("b", (5, 1, 0), 2, (3, 4, 11), 20),
    ("d", (4,), 6, (9,), 21),
    ("a", (0, 1, 2, 3, 4), 0, (1, 2, 5, 10, 11), 21),
)
TRAIN: tuple[Row, ...] = (("b", (5,), 1, (3,), 4), ("a", (0,), 1, (1,), 5), ("a", (0, 1), 2, (1, 5), 6))


def sid(item: int) -> str:
    return f"<a_{item}><b_{item}>"


def write_text(path: Path, text: str, *, packed: bool) -> Path:
    if packed:
        path = path.with_name(f"{path.name}.gz")
        path.write_bytes(gzip.compress(text.encode(), mtime=0))
    else:
        path.write_text(text, encoding="utf-8", newline="")
    return path


def latentr3_row(row: Row) -> dict[str, Any]:
    user, history, target, times, time = row
    return {
        "user_id": user,
        "item_asins": [f"B{item:03}" for item in history],
        "item_asin": f"B{target:03}",
        "history_item_id": list(history),
        "item_id": target,
        "history_item_title": [TITLES[item] for item in history],
        "item_title": TITLES[target],
        "history_rating": [5.0] * len(history),
        "rating": 4.0,
        "history_timestamp": [day * DAY for day in times],
        "timestamp": time * DAY,
    }


def minionerec_row(row: Row) -> dict[str, Any]:
    user, history, target, _, _ = row
    return {
        "user_id": user,
        "history_item_title": [TITLES[item] for item in history],
        "item_title": TITLES[target],
        "history_item_id": list(history),
        "item_id": target,
        "history_item_sid": [sid(item) for item in history],
        "item_sid": sid(target),
    }


ROWS = {"latentr3_csv": latentr3_row, "minionerec_csv": minionerec_row}


def write_folder(
    folder: Path, kind: str, *, packed: bool = False, parts: Mapping[str, Sequence[Row]] | None = None
) -> Path:
    """A folder of the kind with the given parts; without train by default."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, rows in (parts or {"valid": VALID, "test": TEST}).items():
        path = folder / f"{part}.csv"
        records = [ROWS[kind](row) for row in rows]
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, records[0].keys(), lineterminator="\n")
            writer.writeheader()
            writer.writerows(records)  # lists as Python prints them, as pandas writes them
        text = path.read_text(encoding="utf-8")
        path.unlink()
        write_text(path, text, packed=packed)
    before = (lambda item: f"{sid(item)}\t") if kind == "minionerec_csv" else (lambda _: "")
    info = "".join(f"{before(item)}{title}\t{item}\n" for item, title in enumerate(TITLES))
    write_text(folder / "info.txt", info, packed=packed)
    if kind == "minionerec_csv":
        details = {str(item): {"title": title, "brand": f"Brand {item}"} for item, title in enumerate(TITLES[:-1])}
        details["0"]["categories"] = ["Office", "Paper"]  # type: ignore[assignment]
        write_text(folder / "item.json", json.dumps(details), packed=packed)
    return folder


def edit(path: Path, old: str, new: str) -> None:
    """Replace text in a file that has it."""
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8", newline="")
