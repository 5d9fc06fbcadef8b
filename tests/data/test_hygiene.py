from __future__ import annotations

import unicodedata

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flr_bench.data.hygiene import clean_title, clean_titles


@pytest.mark.parametrize(
    ("title", "clean", "steps"),
    [
        ("Toy Story (1995)", "Toy Story (1995)", ()),
        ("R&amp;B", "R&B", ("entities",)),
        ("&amp;quot;Heroes&amp;quot;", '"Heroes"', ("entities",)),
        ("&#39;74 Jailbreak &#x26; more", "'74 Jailbreak & more", ("entities",)),
        ("copy&paste, AT&T, Q&A; R&B", "copy&paste, AT&T, Q&A; R&B", ()),
        ("&nosuchname;", "&nosuchname;", ()),
        ("<b>Bold</b>ly <BR/>Gone<br>Now", "Boldly Gone Now", ("tags",)),
        ('Name <span class="a-size-medium a-color-secondary a-text-normal', "Name", ("tags", "extra_space")),
        ("&lt;i&gt;Emma&lt;/i&gt;", "Emma", ("entities", "tags")),
        ("<!-- price --> Emma", "Emma", ("tags", "extra_space")),
        ("<Untitled> & I <3 U, a < b > c", "<Untitled> & I <3 U, a < b > c", ()),
        ("Tab\there\r\n and\u00a0there ", "Tab here and there", ("extra_space",)),
        ("Zero\u200bwidth\x00\x1b[0m\ufeff", "Zerowidth[0m", ("control_characters",)),
        ("👩\u200d👩\u200d👧", "👩\u200d👩\u200d👧", ()),
        ("Cafe\u0301", "Café", ("normalised",)),
        ("  ", "", ("extra_space",)),
        ("", "", ()),
    ],
)
def test_titles(title: str, clean: str, steps: tuple[str, ...]) -> None:
    names = {step if step == "normalised" else f"with_{step}" for step in steps}
    if "tags" in steps and clean == "Boldly Gone Now":
        names.add("with_extra_space")  # the space before a line break
    assert clean_title(title) == (clean, {f"titles_{name}" for name in names})


def test_counts() -> None:
    cleaned, counts = clean_titles(pa.array(["A", "A &amp; B", " C", None, "<br>", "&amp; <b>D</b>"], pa.string()))
    assert cleaned.to_pylist() == ["A", "A & B", "C", "", "", "& D"]
    assert counts.as_counts() == {
        "titles_changed": 4,
        "titles_with_entities": 2,
        "titles_with_tags": 2,
        "titles_with_extra_space": 2,
        "titles_emptied": 1,
    }


PIECES = st.sampled_from(
    ["&amp;", "&lt;", "&#0;", "&#xD800;", "<b>", "</b>", "<br", ">", " ", "\u00a0", "\x07", "e\u0301"]
)


@given(st.lists(st.one_of(PIECES, st.text(max_size=4)), max_size=8).map("".join))
def test_a_clean_title_is_tidy_and_stays_as_it_is(title: str) -> None:
    clean, steps = clean_title(title)
    assert clean_title(clean) == (clean, frozenset())
    assert clean == " ".join(clean.split())
    assert unicodedata.is_normalized("NFC", clean)
    assert bool(steps) >= (clean != title)
    clean.encode()


def test_hostile_titles_take_no_time() -> None:
    for title in ("&" + "amp;" * 50_000, "<b " * 50_000, "<!--" * 50_000, "<" * 200_000, "&#" * 100_000):
        clean_title(title)
