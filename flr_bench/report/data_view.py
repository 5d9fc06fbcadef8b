"""A data set in words: what ``flr-bench data show`` prints and what its page says, made once for both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from flr_bench.data.prepared import describe
from flr_bench.errors import DamagedFileError
from flr_bench.interface import Catalog, Examples
from flr_bench.lm.prompt import PromptTemplate, template

if TYPE_CHECKING:
    from flr_bench.data.prepared import PreparedData

__all__ = [
    "DataView",
    "Line",
    "Section",
    "ShownExample",
    "as_text",
    "harmless",
    "leakage_section",
    "preparation_section",
    "size_section",
    "terms_section",
    "tokenizer_of",
    "view",
]

HISTORY_SHOWN = 10
"""Items of a history in the examples shown, the latest."""

PARTS_SHOWN = ("train", "valid", "test")


@dataclass(frozen=True)
class Line:
    """One fact: a label and what stands beside it.

    Attributes:
        label: what it is.
        text: its value, as it is read.
        key: where it stands in the manifest, names joined by dots; ``""`` where it is computed for the page.
        value: the manifest's value at ``key``.
    """

    label: str
    text: str
    key: str = ""
    value: int | float | None = None


@dataclass(frozen=True)
class Section:
    """A heading with facts and sentences."""

    title: str
    lines: tuple[Line, ...] = ()
    sentences: tuple[str, ...] = ()


@dataclass(frozen=True)
class ShownExample:
    """One example as a language model sees it: what it is asked, and what it should answer."""

    part: str
    prompt: str
    target: str


@dataclass(frozen=True, eq=False)
class DataView:
    """Everything that text and page say about a data set.

    Attributes:
        name: the name it is known by.
        title: in full.
        sections: facts, in the order they are read.
        examples: three real examples, one of each part.
        template: name of the prompt template they are written in.
    """

    name: str
    title: str
    sections: tuple[Section, ...]
    examples: tuple[ShownExample, ...]
    template: str


def view(data: PreparedData, name: str, *, tokenizer: Any = None, prompt: str = "titles@1") -> DataView:
    """Describe a prepared data set.

    Args:
        data: the data set.
        name: the name it is known by.
        tokenizer: a backbone's fast tokenizer, to give lengths in tokens too; ``None``: words alone.
        prompt: name of the template that the examples are written in.

    Raises:
        UnknownNameError: there is no such template.
        DataError: the tokenizer cannot write one of the titles.
    """
    manifest, chosen = describe(data), template(prompt)
    about = manifest.get("source", {})
    sections = (
        _size(manifest, data),
        _lengths(data, tokenizer, prompt),
        preparation_section(manifest),
        leakage_section(manifest),
        terms_section(manifest),
    )
    shown = tuple(_shown(getattr(data, part), part, data.catalog, chosen) for part in PARTS_SHOWN)
    return DataView(name, str(about.get("title", name)), sections, shown, prompt)


def tokenizer_of(folder: Path) -> Any:
    """The fast tokenizer of the backbone in ``folder``.

    Raises:
        DamagedFileError: there is none.
    """
    from transformers import PreTrainedTokenizerFast

    file = folder / "tokenizer.json"
    if not file.is_file():
        raise DamagedFileError(f"{folder} has no fast tokenizer (tokenizer.json); choose a backbone's folder")
    return PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)


def _headline(shown: DataView) -> str:
    """Name and title, the name once."""
    return shown.title if shown.title.startswith(f"{shown.name}: ") else f"{shown.name}: {shown.title}"


def as_text(shown: DataView) -> Iterator[tuple[str, bool]]:
    """The lines of a terminal, each with whether it is a heading.

    Titles are foreign text: characters that would steer the terminal are replaced.
    """
    yield harmless(_headline(shown)), True
    for section in shown.sections:
        yield "", False
        yield section.title, True
        width = max((len(line.label) for line in section.lines), default=0)
        for line in section.lines:
            yield harmless(f"  {line.label:<{width}}  {line.text}"), False
        for sentence in section.sentences:
            yield harmless(f"  {sentence}"), False
    yield "", False
    yield f"Three examples as a language model sees them (prompt {shown.template})", True
    for example in shown.examples:
        yield f"  {example.part}", False
        yield from ((harmless(f"    | {line}"), False) for line in example.prompt.rstrip("\n").split("\n"))
        yield harmless(f"    > {example.target}"), False


# ---------------------------------------------------------------- sections
def size_section(manifest: Mapping[str, Any]) -> Section:
    """How many users, items and examples there are, from the manifest alone."""
    found = _Reader(manifest)
    lines = [
        found.number("users", "statistics.users"),
        found.number("items", "statistics.items"),
        found.number("interactions", "statistics.interactions"),
        found.share("density (interactions of all user-item pairs)", "statistics.density", digits=4),
        found.number("distinct titles", "statistics.distinct_titles"),
        found.number("items that share their title", "statistics.items_with_shared_title"),
        found.number("titles equal but for writing or edition: groups", "leakage.near_duplicate_titles.groups"),
        found.number("... items in them", "leakage.near_duplicate_titles.items"),
        found.count("repeats of a user and item", "leakage.repeated_pairs"),
        found.count("... at the same time, too", "leakage.duplicate_interactions"),
        found.share("interactions that share user and time with another", "statistics.tie_rate"),
    ]
    for part in PARTS_SHOWN:
        lines.append(found.number(f"{part} examples", f"statistics.parts.{part}.examples"))
        lines.append(found.number("... of users", f"statistics.parts.{part}.users"))
    return Section("Size", tuple(line for line in lines if line is not None))


def _size(manifest: Mapping[str, Any], data: PreparedData) -> Section:
    lines = list(size_section(manifest).lines)
    if manifest.get("times", "seconds") == "seconds":
        first, last = int(data.all_interactions.timestamps[0]), int(data.all_interactions.timestamps[-1])
        lines.append(Line("first and last interaction", f"{day(first)} to {day(last)}"))
    else:
        lines.append(Line("times", f"none; the {manifest['times']} stands for time"))
    return Section("Size", tuple(lines))


def _lengths(data: PreparedData, tokenizer: Any, prompt: str) -> Section:
    lines = [
        Line(f"history of a {part} example, items", _spread(getattr(data, part).history_lengths))
        for part in PARTS_SHOWN
    ]
    lines.append(Line("title, words", _spread(title_words(data.catalog))))
    if tokenizer is not None:
        from flr_bench.lm.prompt import TokenizedCatalog, build_prompts

        tokenized = TokenizedCatalog.build(data.catalog, tokenizer, prompt)
        lines.append(
            Line("title as a target, tokens of the backbone", _spread(tokenized.targets.lengths[_rows(data.catalog)]))
        )
        prompts = build_prompts(data.test.last(HISTORY_SHOWN), tokenized, max_tokens=2**20)
        label = f"prompt of a test example ({HISTORY_SHOWN} items at most), tokens"
        lines.append(Line(label, _spread(prompts.lengths)))
    return Section("Lengths", tuple(lines))


def preparation_section(manifest: Mapping[str, Any]) -> Section:
    """What was left out, how it was split and what the source remarks."""
    recipe = manifest.get("recipe", {})
    lines = [
        Line(heading, _settings(recipe[name]))
        for name, heading in (("filters", "filters"), ("split", "split"))
        if recipe.get(name)
    ]
    found = _Reader(manifest)
    for place, step in enumerate(manifest.get("filtering", ())):
        text = ", ".join(f"{step[what]:,} {what}" for what in ("interactions", "users", "items") if what in step)
        lines.append(
            Line(f"after step '{step['step']}'", text, f"filtering.{place}.interactions", step["interactions"])
        )
    if not manifest.get("filtering"):
        removed = (
            found.number("interactions removed", "statistics.removed.interactions"),
            found.number("items removed", "statistics.removed.items"),
        )
        lines += [line for line in removed if line is not None]
    for name in manifest.get("counts", {}):
        counted = found.number(name.replace("_", " "), f"counts.{name}")
        lines += [] if counted is None else [counted]
    return Section("Preparation", tuple(lines), tuple(map(str, manifest.get("remarks", ()))))


_OF_A_TARGET = {
    "targets_unseen_in_train": "targets without a training interaction",
    "users_not_in_train": "users without a training interaction",
    "targets_in_history": "targets already in their history",
    "targets_title_in_history": "targets whose title is in their history",
    "targets_with_shared_title": "targets that share their title with another item",
    "targets_at_time_of_last_history_item": "targets at the very time of the history's last item",
    "targets_before_a_train_interaction": "targets that a training interaction is later than",
    "neighbours_tied_across_cut": "interactions at the time of the same user's last one before the cut",
}


def leakage_section(manifest: Mapping[str, Any]) -> Section:
    """What test and valid examples give away, and what a reader should conclude."""
    found = _Reader(manifest)
    lines: list[Line | None] = []
    for part in ("test", "valid"):
        for name, label in _OF_A_TARGET.items():
            lines.append(found.count(f"{part}: {label}", f"leakage.parts.{part}.{name}"))
    for part in ("test", "valid"):
        lines.append(
            found.count(
                f"training interactions later than the first {part} target", f"leakage.train_later_than_first_{part}"
            )
        )
        lines.append(
            found.number(f"before the {part} cut at the cut's own time", f"leakage.ties_at_cut.{part}.earlier")
        )
        lines.append(found.number("... and after it", f"leakage.ties_at_cut.{part}.later"))
    return Section("Leakage", tuple(line for line in lines if line is not None), tuple(_verdicts(manifest)))


def _verdicts(manifest: Mapping[str, Any]) -> Iterator[str]:
    """What a reader should conclude, where there is something to conclude."""
    report = manifest.get("leakage", {})
    test = report.get("parts", {}).get("test", {})
    late = report.get("train_later_than_first_test", {}).get("share", 0.0)
    if late > 0:
        yield (
            f"Leak: {late:.1%} of the training interactions are later than the first test target; methods learn "
            "from the future of others. A global_temporal split has none."
        )
    elif report:
        yield "No training interaction is later than any test target."
    rules = (
        (
            "targets_unseen_in_train",
            0.05,
            "cannot be found by a method that knows items by their training interactions",
        ),
        ("targets_at_time_of_last_history_item", 0.2, "have the time of the item before them: their order is chance"),
        ("targets_title_in_history", 0.01, "repeat a title of the history, so that copying scores"),
        ("targets_with_shared_title", 0.05, "share their title: by title they are several items at once"),
    )
    for name, least, meaning in rules:
        counted = test.get(name)
        if counted and counted["share"] >= least:
            yield f"{counted['share']:.1%} of the test targets {meaning}."


def terms_section(manifest: Mapping[str, Any]) -> Section:
    """Licence, citation and checksum."""
    about = manifest.get("source", {})
    lines = [
        Line(name, str(about[key])) for name, key in (("licence", "license"), ("citation", "citation")) if key in about
    ]
    lines.append(Line("checksum", str(manifest.get("checksum", ""))))
    return Section("Terms", tuple(lines))


# ---------------------------------------------------------------- examples
def _shown(examples: Examples, part: str, catalog: Catalog, chosen: PromptTemplate) -> ShownExample:
    """The first example with a history as long as half of them have at least: typical, and the same everywhere."""
    lengths = np.minimum(examples.history_lengths, HISTORY_SHOWN)
    row = int(np.argmax(lengths >= min(float(np.median(lengths)), 3)))
    titles = [catalog.titles[item] for item in examples.history(row)[-HISTORY_SHOWN:]]
    patterns = [chosen.first] + [chosen.later] * (len(titles) - 1)
    body = "".join(pattern.replace("{}", title) for pattern, title in zip(patterns, titles, strict=True))
    target = chosen.target.replace("{}", catalog.titles[examples.targets[row]]).rstrip("\n")
    return ShownExample(part, f"{chosen.start}{body}{chosen.stop}", target)


# ---------------------------------------------------------------- values
class _Reader:
    """Facts out of a manifest; one that is not there gives none."""

    def __init__(self, manifest: Mapping[str, Any]) -> None:
        self._manifest = manifest

    def number(self, label: str, key: str) -> Line | None:
        value = at(self._manifest, key)
        return None if value is None else Line(label, f"{value:,}", key, value)

    def share(self, label: str, key: str, digits: int = 1) -> Line | None:
        value = at(self._manifest, key)
        return None if value is None else Line(label, f"{value:.{digits}%}", key, value)

    def count(self, label: str, key: str) -> Line | None:
        """``{"count", "of", "share"}`` as one fact; ``null`` where a source does not tell."""
        found = at(self._manifest, key, missing="")
        if found == "":
            return None
        if found is None:
            return Line(label, "not known")
        return Line(
            label, f"{found['count']:,} of {found['of']:,} ({found['share']:.1%})", f"{key}.count", found["count"]
        )


def at(manifest: Mapping[str, Any], key: str, missing: Any = None) -> Any:
    """The value at ``key``, names joined by dots (places of lists as numbers); ``missing`` if there is none."""
    value: Any = manifest
    for name in key.split("."):
        if isinstance(value, list) and name.isdigit() and int(name) < len(value):
            value = value[int(name)]
        elif isinstance(value, Mapping) and name in value:
            value = value[name]
        else:
            return missing
    return value


def title_words(catalog: Catalog) -> npt.NDArray[np.int64]:
    """``[items]`` words of each item's title, parted by white space."""
    words = np.array([len(title.split()) for title in catalog.distinct_titles], dtype=np.int64)
    return words[_rows(catalog)]


def day(timestamp: int) -> str:
    """The day of a time in seconds since 1970 (UTC), ISO 8601; the number itself far outside of our calendar."""
    try:
        return datetime.fromtimestamp(timestamp, UTC).date().isoformat()
    except (ValueError, OverflowError, OSError):
        return f"{timestamp:,}"


def _rows(catalog: Catalog) -> npt.NDArray[np.int32]:
    return catalog.title_of_item


def _spread(values: npt.NDArray[np.integer[Any]]) -> str:
    low, middle, high = (int(value) for value in np.quantile(values, (0.0, 0.5, 1.0), method="lower"))
    return f"mean {float(values.mean()):.2f}, median {middle:,}, from {low:,} to {high:,}"


def _settings(values: Mapping[str, Any] | Sequence[Any]) -> str:
    if not isinstance(values, Mapping):
        return str(values)
    parts = (f"{name} = {_plain(value)}" for name, value in values.items() if name != "name")
    return ", ".join([*([str(values["name"])] if "name" in values else []), *parts])


def _plain(value: Any) -> str:
    return " / ".join(map(str, value)) if isinstance(value, list) else str(value)


def harmless(text: str) -> str:
    """Foreign text without the characters that would steer a terminal."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
