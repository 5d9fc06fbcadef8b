"""Raw data in numbers: what every source ends in, and what filtering and splitting begin with.

Keys of users and items are replaced by their index once, in Arrow, so that nothing after that holds
a Python object per interaction: thirty million interactions are half a gigabyte here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from flr_bench.errors import DataError
from flr_bench.interface import Examples, Int32s, Int64s

if TYPE_CHECKING:
    import pyarrow as pa

    from flr_bench.data.sources import RawData

__all__ = ["CodedData", "code"]

Float32s = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class CodedData:
    """What a source holds, keys replaced by indices; not yet filtered, ordered or split.

    Attributes:
        users: ``[n]`` int32 index into ``user_keys``.
        items: ``[n]`` int32 row of ``catalog``.
        timestamps: ``[n]`` int64 seconds since 1970 (UTC).
        user_keys: text, distinct.
        catalog: columns of text: ``item`` (key, distinct), ``title`` (several items may share one,
            none is blank), and any number of attributes.
        origin: where the data comes from, for messages; a file, a folder or a name.
        ratings: ``[n]`` float32, where the source has them.
        given: examples of ``train``, ``valid`` and ``test`` that the source brings itself, with their
            own histories; users and items as above.  ``users``, ``items`` and ``timestamps`` then are
            the training interactions and nothing else.  ``None`` for all other sources.
        given_times: by part, for each given example the time of its history's last item, ``[n]`` seconds;
            parts of which a source does not tell are not there.
        remarks: what a reader of any table made of this data must be told, one sentence each.
        counts: what reading left out or changed, by a name that says it (``interactions_without_item``,
            ``titles_changed``).
        times: what ``timestamps`` are: real ``seconds``, or the ``order of rows`` where a source has no
            times; statistics that need times are then not real.
    """

    users: Int32s
    items: Int32s
    timestamps: Int64s
    user_keys: pa.Array
    catalog: pa.Table
    origin: str
    ratings: Float32s | None = None
    given: Mapping[str, Examples] | None = None
    given_times: Mapping[str, Int64s] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    times: Literal["seconds", "order of rows"] = "seconds"

    def __len__(self) -> int:
        """Number of interactions."""
        return len(self.items)

    def __post_init__(self) -> None:
        """Refuse arrays that do not fit together: a mistake in a source, not in the data.

        Raises:
            DataError: lengths differ, or an index points nowhere.
        """
        columns: dict[str, npt.NDArray[Any] | None] = {
            "items": self.items,
            "timestamps": self.timestamps,
            "ratings": self.ratings,
        }
        for name, values in columns.items():
            if values is not None and len(values) != len(self.users):
                raise DataError(f"{self.origin}: {len(self.users)} users but {len(values)} {name}; mend the source")
        for name, codes, size in (("user", self.users, len(self.user_keys)), ("item", self.items, len(self.catalog))):
            if len(codes) and not 0 <= int(codes.min()) <= int(codes.max()) < size:
                raise DataError(
                    f"{self.origin}: an interaction's {name} is not one of the {size} listed; mend the source"
                )


def code(raw: RawData) -> CodedData:
    """Replace the keys of a source's tables by indices.

    Users are numbered in the order of first appearance, items as the table of items lists them.

    Raises:
        DataError: the tables cannot be used (:meth:`flr_bench.data.sources.RawData.check`).
    """
    import pandas as pd
    import pyarrow as pa

    raw.check()
    users, user_keys = pd.factorize(raw.interactions["user"])
    items = pd.Index(raw.items["item"]).get_indexer(pd.Index(raw.interactions["item"]))
    texts = {str(name): raw.items[name].astype(object) for name in raw.items.columns}
    columns = {
        name: pa.array(["" if pd.isna(value) else str(value) for value in values], pa.string())
        for name, values in texts.items()
    }
    return CodedData(
        users=users.astype(np.int32),
        items=items.astype(np.int32),
        timestamps=raw.interactions["timestamp"].to_numpy(dtype=np.int64),
        user_keys=pa.array([str(key) for key in user_keys], pa.string()),
        catalog=pa.table(columns),
        origin=raw.origin,
        ratings=raw.interactions["rating"].to_numpy(dtype=np.float32) if "rating" in raw.interactions else None,
    )
