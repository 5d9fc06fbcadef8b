"""Figures that others published, each with its source: ``experiments/published/*.yaml``, read and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from flr_bench.errors import UsageError

Name = Annotated[str, Field(min_length=1)]
Metric = Annotated[str, Field(pattern=r"^(hr|ndcg|mrr)@[1-9]\d*$")]
Value = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Reasoner = Literal["none", "single_latent", "flr"]
Decoding = Literal["length_normalised", "d3"]
UNKNOWN = "not stated"
DECODINGS: Mapping[Decoding, str] = {"length_normalised": "BIGRec's (length-normalised)", "d3": "D3's"}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Strict):
    """Where figures come from.

    Attributes:
        text: in words.
        reference: of the paper, if it is one's figures.
        kind: whether its authors printed them, or somebody else did.
        place: table and page, as far as they are known.
    """

    text: Name
    reference: str | None = None
    kind: Literal["own table", "secondary source"]
    place: Name


class Setting(_Strict):
    """Under which conditions they were measured; ``None`` for what the source does not say."""

    data: Name
    hits: Literal["title", "item"] | None = None
    backbone: str | None = None
    search: str | None = None


class DataSet(_Strict):
    """What a source calls a data set, and what it may be called here."""

    title: Name
    names: tuple[Name, ...]


class PublishedRow(_Strict):
    """One method with its figures by data set and metric.

    Attributes:
        label: as the source calls it.
        reasoner, decoding: where it stands among reasoners and decodings; ``None`` if that is not known.
        figures: data set → metric → value.
    """

    label: Name
    reasoner: Reasoner | None = None
    decoding: Decoding | None = None
    figures: dict[str, dict[Metric, Value]]


class PublishedFile(_Strict):
    """One source's figures.

    Attributes:
        digits: decimals that the source prints.
        data: its data sets by the names that ``rows`` use.
        remarks: what a reader must know of them.
        statements: what the source says in words and percentages.
    """

    title: Name
    source: Source
    setting: Setting
    digits: Annotated[int, Field(ge=1, le=6)]
    data: dict[str, DataSet]
    rows: tuple[PublishedRow, ...]
    remarks: tuple[str, ...] = ()
    statements: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _of_known_data(self) -> Self:
        for row in self.rows:
            unknown = [name for name in row.figures if name not in self.data]
            if unknown:
                raise ValueError(f"'{row.label}' has figures on {unknown[0]}, which is not under data")
        return self

    def keys(self, data: str) -> tuple[str, ...]:
        """The source's data sets that ``data``, as a suite calls it, may be compared with."""
        name = data.partition(" ")[0]
        return tuple(key for key, known in self.data.items() if name in known.names)

    def metrics(self, key: str) -> tuple[str, ...]:
        """The metrics that there are on a data set, in order of appearance."""
        return tuple(dict.fromkeys(metric for row in self.rows for metric in row.figures.get(key, ())))


def load_published(folder: Path | None = None) -> Sequence[PublishedFile]:
    """All sources, by file name.

    Args:
        folder: where they are; by default those that ship with the suites.

    Raises:
        UsageError: a file is not what it should be; names file, line and field.
    """
    if folder is None:
        import experiments

        folder = Path(next(iter(experiments.__path__))) / "published"
    return [read_published_file(path) for path in sorted(folder.glob("*.yaml"))]


def read_published_file(path: Path) -> PublishedFile:
    """One source's figures.

    Raises:
        UsageError: the file cannot be read, or a field is missing, unknown or ill-typed; names file, line and field.
    """
    from flr_bench.runner.suite import explain, plain_location
    from flr_bench.runner.suite_source import Place, dotted, place_of, read_source

    try:
        source = read_source(path, tuple(PublishedFile.model_fields))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    try:
        return PublishedFile.model_validate(source.content)
    except ValidationError as error:
        where = plain_location(error)
        place = place_of(source.places, where) or Place(path, 1, where)
        raise UsageError(f"{place.path}:{place.line}: {dotted(where)}: {explain(PublishedFile, error)}") from error
