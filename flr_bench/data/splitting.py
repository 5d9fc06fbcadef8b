"""The order of interactions, the split, and the examples made of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from flr_bench.interface import Examples, Interactions, Params

Ints = npt.NDArray[np.integer[Any]]
Int8s = npt.NDArray[np.int8]
Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]

TRAIN, VALID, TEST = 0, 1, 2
PARTS = ("train", "valid", "test")
DEFAULT_FRACTIONS = (0.8, 0.1, 0.1)


class SplitParams(Params):
    """How interactions become train, valid and test examples.

    ``global_temporal`` cuts the interactions of all users at two points of one common order of
    time, so that nothing in train is later than anything in valid or test.  ``leave_one_out`` keeps
    each user's last interaction for test and the one before for valid; train then contains
    interactions of some users that are later than test targets of others.
    """

    name: Literal["global_temporal", "leave_one_out"] = Field(
        default="global_temporal", description="which rule cuts the interactions"
    )
    cut: Literal["interactions"] = Field(
        default="interactions", description="what is counted to find the cuts: interactions, before examples are made"
    )
    fractions: tuple[float, float, float] = Field(
        default=DEFAULT_FRACTIONS,
        description="shares of train, valid and test, each above 0, 1 in all (global_temporal)",
    )
    tie_seed: int = Field(default=0, ge=0, description="seed of the hash that orders interactions of one timestamp")

    @model_validator(mode="after")
    def _check_fractions(self) -> Self:
        if min(self.fractions) <= 0 or abs(sum(self.fractions) - 1) > 1e-9:
            raise ValueError(f"fractions must each be above 0 and add up to 1, not {list(self.fractions)}")
        if self.name == "leave_one_out" and self.fractions != DEFAULT_FRACTIONS:
            raise ValueError("leave_one_out takes no fractions; leave them out")
        return self

    def recipe(self) -> dict[str, Any]:
        """The settings that matter under this rule, as JSON values."""
        drop = {"fractions", "cut"} if self.name == "leave_one_out" else set()
        return self.model_dump(mode="json", exclude=drop)


def order_in_time(
    user_keys: Sequence[str], item_keys: Sequence[str], users: Ints, items: Ints, timestamps: Ints, *, seed: int
) -> Int64s:
    """Positions of the interactions in the order of time, ties broken by a seeded hash.

    Many data sets have ties (in ML-100K 76 % of the rows share user and timestamp with another).
    Breaking them by item id or by the order of the file leaks how the file was made: an item's id
    then tells what comes next.  The hash of (user key, item key, seed) knows neither.

    Args:
        user_keys: key of each user.
        item_keys: key of each item.
        users: ``[n]`` index into ``user_keys``.
        items: ``[n]`` index into ``item_keys``.
        timestamps: ``[n]`` seconds.
        seed: seed of the hash.

    Returns:
        ``[n]`` int64 permutation; independent of the order of the rows as long as no two are equal
        in user, item and timestamp.
    """
    of_user = _hash_keys(user_keys, f"user {seed}")[users]
    of_item = _hash_keys(item_keys, f"item {seed}")[items]
    return np.lexsort((of_item, of_user, _mix(of_user + _mix(of_item)), timestamps))


def assign_parts(users: Ints, params: SplitParams) -> Int8s:
    """Which part each interaction belongs to.

    Args:
        users: ``[n]`` user of each interaction, in the order of time.
        params: the rule.

    Returns:
        ``[n]`` int8 of ``TRAIN``, ``VALID``, ``TEST``; never decreasing along a user's interactions.
    """
    if params.name == "leave_one_out":
        return _leave_one_out(users)
    cuts = np.rint(np.cumsum(params.fractions[:2]) * len(users)).astype(np.int64)
    return np.searchsorted(cuts, np.arange(len(users)), side="right").astype(np.int8)


def make_examples(interactions: Interactions, parts: Int8s, part: int) -> Examples:
    """The examples whose targets are the interactions of one part.

    Every interaction from a user's second on is a target; its history is all that the user did
    before it in the order of time, whatever part that belongs to.  Nothing of later parts is in the
    returned arrays.

    Args:
        interactions: all interactions in the order of time.
        parts: ``[n]`` int8 as from :func:`assign_parts`.
        part: ``TRAIN``, ``VALID`` or ``TEST``.

    Returns:
        Examples in the order of time; an example's id is its target's place in that order.
    """
    known = np.flatnonzero(parts <= part)
    users = interactions.users[known]
    by_user = np.argsort(users, kind="stable")
    place = np.empty(len(known), dtype=np.int64)
    place[by_user] = np.arange(len(known))
    first = np.searchsorted(users[by_user], users, side="left")
    targets = np.flatnonzero((parts[known] == part) & (place > first))
    rows = known[targets]
    return Examples(
        ids=rows.astype(np.int64),
        users=interactions.users[rows],
        targets=interactions.items[rows],
        timestamps=interactions.timestamps[rows],
        starts=first[targets].astype(np.int64),
        stops=place[targets],
        items=interactions.items[known][by_user],
    )


def spread_over_users(users: Ints, n: int | None, *, seed: int) -> Int64s:
    """Choose ``n`` examples so that all users have as equal a share as their examples allow.

    Users take turns in a random order, each giving one of its examples at random, until ``n`` are
    chosen.  So a smaller choice is part of a larger one of the same seed.

    Args:
        users: ``[m]`` user of each example.
        n: how many; ``None`` or at least ``m`` means all.
        seed: seed of both random orders.

    Returns:
        Positions of the chosen examples, ascending.
    """
    if n is None or n >= len(users):
        return np.arange(len(users), dtype=np.int64)
    generator = np.random.default_rng(seed)
    distinct, codes = np.unique(users, return_inverse=True)
    user_turn = generator.permutation(len(distinct))[codes]
    shuffled = generator.permutation(len(users))
    grouped = shuffled[np.argsort(codes[shuffled], kind="stable")]
    round_of = np.empty(len(users), dtype=np.int64)
    round_of[grouped] = np.arange(len(users)) - np.searchsorted(codes[grouped], codes[grouped], side="left")
    chosen = np.lexsort((user_turn, round_of))[:n]
    return np.sort(chosen).astype(np.int64)


def _leave_one_out(users: Ints) -> Int8s:
    """Last to test, last but one to valid; of two interactions the second goes to test, a single one to train."""
    by_user = np.argsort(users, kind="stable")
    ordered = users[by_user]
    first = np.searchsorted(ordered, ordered, side="left")
    after = np.searchsorted(ordered, ordered, side="right")
    place = np.arange(len(users))
    count, left = after - first, after - 1 - place
    part = np.full(len(users), TRAIN, dtype=np.int8)
    part[(left == 1) & (count >= 3)] = VALID
    part[(left == 0) & (count >= 2)] = TEST
    out = np.empty_like(part)
    out[by_user] = part
    return out


def _hash_keys(keys: Sequence[str], salt: str) -> UInt64s:
    digests = b"".join(hashlib.blake2b(f"{salt}\0{key}".encode(), digest_size=8).digest() for key in keys)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def _mix(values: UInt64s) -> UInt64s:
    """The finaliser of splitmix64: every bit of the input moves every bit of the output."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
