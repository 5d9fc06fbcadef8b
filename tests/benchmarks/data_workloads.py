"""Generated interactions of realistic skew, written as files that both ways read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc

from flr_bench.data.filtering import first_of_duplicates

FULL = 30_000_000
FULL_USERS, FULL_ITEMS = 1_500_000, 200_000
POPULARITY_EXPONENT, POPULARITY_SHIFT = 1.0, 20
SECONDS_OF_DATA = 6 * 365 * 86_400
BLOCK = 2_000_000


@dataclass(frozen=True)
class Size:
    """How much is generated: users and items in the proportions of the full size."""

    interactions: int

    @property
    def users(self) -> int:
        return max(200, self.interactions * FULL_USERS // FULL)

    @property
    def items(self) -> int:
        return max(100, self.interactions * FULL_ITEMS // FULL)


def generate(size: Size, folder: Path, *, seed: int = 0) -> None:
    """Write ``interactions.csv``, ``items.csv`` and RecBole's ``generated/generated.inter``.

    Items follow Zipf's law, flattened at the head; the number of interactions of a user is log-normal;
    each user comes at some time within six years and stays for a while that differs from user to user.
    A tenth of the interactions share their second with the user's one before.  Rows are in no order.
    """
    rng = np.random.default_rng(seed)
    n = size.interactions
    weights = 1.0 / (np.arange(size.items) + POPULARITY_SHIFT) ** POPULARITY_EXPONENT
    share = np.cumsum(weights) / weights.sum()
    activity = np.cumsum(rng.lognormal(0.0, 1.2, size.users))
    users = np.searchsorted(activity / activity[-1], rng.random(n)).astype(np.int32)
    items = rng.permutation(size.items).astype(np.int32)[np.searchsorted(share, rng.random(n))]
    arrival, stay = rng.random(size.users) * SECONDS_OF_DATA, rng.exponential(60 * 86_400, size.users)
    times = (arrival[users] + rng.random(n) * stay[users]).astype(np.int64) + 1_300_000_000
    times -= np.where(rng.random(n) < 0.2, times % 3_600, 0)  # some sites record less exactly
    stays = first_of_duplicates(users, items, times)
    users, items, times = users[stays], items[stays], times[stays]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "generated").mkdir(exist_ok=True)
    _write(folder / "interactions.csv", ("user", "item", "timestamp"), users, items, times)
    _write(
        folder / "generated" / "generated.inter",
        ("user_id:token", "item_id:token", "timestamp:float"),
        users,
        items,
        times,
        delimiter="\t",
    )
    titles = pa.table(
        {"item": _keys("i", np.arange(size.items)), "title": _keys("Title number ", np.arange(size.items))}
    )
    pc.write_csv(titles, folder / "items.csv")


def _keys(letter: str, numbers: np.ndarray) -> pa.Array:
    import pyarrow.compute as compute

    texts = pa.array(numbers).cast(pa.string())
    return compute.binary_join_element_wise(letter, texts, "")


def _write(
    path: Path,
    names: tuple[str, str, str],
    users: np.ndarray,
    items: np.ndarray,
    times: np.ndarray,
    *,
    delimiter: str = ",",
) -> None:
    with path.open("wb") as file:
        file.write((delimiter.join(names) + "\n").encode())
        for start in range(0, len(users), BLOCK):
            rows = slice(start, start + BLOCK)
            columns = [_keys("u", users[rows]), _keys("i", items[rows]), pa.array(times[rows])]
            options = pc.WriteOptions(include_header=False, delimiter=delimiter, quoting_style="none")
            pc.write_csv(pa.table(columns, names=list("uit")), file, options)
