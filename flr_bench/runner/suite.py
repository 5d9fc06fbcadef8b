"""Suite files: what to compare, as pydantic models of the YAML, with the file's line in every error."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from flr_bench.data.filtering import Sample
from flr_bench.data.prepared import FilterParams, SplitParams
from flr_bench.errors import UnknownNameError, UsageError
from flr_bench.interface import Budget, Params
from flr_bench.runner.conditions import Conditions
from flr_bench.runner.grids import expand
from flr_bench.runner.limits import parse_bytes, parse_seconds
from flr_bench.runner.suite_source import Location, Place, dotted, place_of, read_source

if TYPE_CHECKING:
    from flr_bench.runner.tuned import TunedFile

Model = TypeVar("Model", bound=BaseModel)


class StageBudget(Params):
    """How long one stage of any method may train, and on how much."""

    epochs: int = Field(ge=0, description="passes over the train examples, at most")
    patience: int | None = Field(
        None, ge=0, description="epochs without improvement before stopping; none never stops early"
    )
    watch: str = Field("ndcg@10", description="'nll' (lower is better) or a metric@k (higher is better), on valid")
    train_examples: int | None = Field(None, ge=1, description="train examples drawn by the seed; none takes all")

    def budget(self) -> Budget:
        """The part that a fit is told."""
        return Budget(epochs=self.epochs, patience=self.patience, watch=self.watch)


class Profile(Params):
    """How large a suite runs."""

    threads: int = Field(1, ge=1, description="CPU threads of a cell")
    workers: int = Field(1, ge=1, description="cells running side by side")
    device: Literal["cpu", "cuda"] = Field("cpu", description="type of torch device")
    devices: int = Field(
        1, ge=1, description="devices (on cpu: processes) that compute one cell together, where the method can"
    )
    test_examples: int | None = Field(None, ge=1, description="test examples, spread over all test users")
    valid_examples: int | None = Field(None, ge=1, description="valid examples, the same for every seed")
    budgets: dict[str, StageBudget] = Field(
        description="by stage, the same for every method that has the stage; further ones have names that controls use"
    )
    shared: dict[str, dict[str, Any]] = Field({}, description="parameters by family, over the suite's own")
    splits: tuple[SplitParams, ...] | None = Field(None, min_length=1, description="in place of the suite's one split")
    sample: Sample | None = Field(None, description="a part of the data, in place of the filters' own sample")
    seeds: int | tuple[int, ...] | None = Field(None, description="in place of the suite's seeds")
    conditions: Conditions | None = Field(None, description="in place of the suite's conditions")
    cell_memory: str | None = Field(None, description="memory at which a cell is ended, such as 8GiB")
    cell_time: str | None = Field(None, description="time after which a cell is ended, such as 2h")

    @field_validator("cell_memory")
    @classmethod
    def _size(cls, value: str | None) -> str | None:
        if value is not None:
            parse_bytes(value, "cell_memory")
        return value

    @field_validator("cell_time")
    @classmethod
    def _time(cls, value: str | None) -> str | None:
        if value is not None:
            parse_seconds(value, "cell_time")
        return value

    @field_validator("seeds")
    @classmethod
    def _seeds(cls, value: int | tuple[int, ...] | None) -> int | tuple[int, ...] | None:
        if value is not None:
            resolve_seeds(value)
        return value

    @model_validator(mode="after")
    def _one_way_of_sharing(self) -> Self:
        if self.devices > 1 and self.workers > 1:
            raise ValueError("cells on several devices run one after another: devices or workers must be 1")
        return self


class RecommenderEntry(Params):
    """One entry of a suite; it makes one row per point of its grid, stage and decoding listed."""

    name: str = Field(description="a registered method")
    label: str | None = Field(None, description="name in tables, if not the method's; {NAME} is a value of the grid")
    params: dict[str, Any] = Field({}, description="fit parameters, over the shared ones")
    stages: tuple[str, ...] | None = Field(None, min_length=1, description="which to rank; the last by default")
    decodings: tuple[str, ...] | None = Field(None, min_length=1, description="values of the rank parameter 'decoding'")
    rank: dict[str, Any] = Field({}, description="further rank parameters")
    control: str | None = Field(None, description="set for rows that are controls: which one")
    grid: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(
        {}, description="values by dotted name of a fit parameter, or of a rank parameter after 'rank.'; all products"
    )
    budgets: dict[str, str] = Field(
        {}, description="controls only: by stage, which of the profile's budgets takes the place of the stage's own"
    )
    profiles: tuple[str, ...] | None = Field(None, min_length=1, description="profiles that have the rows; all if none")

    @field_validator("grid")
    @classmethod
    def _plain_values_once(cls, value: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
        for name, values in value.items():
            if any(isinstance(one, dict | list) for one in values):
                raise ValueError(f"{name}: a grid takes plain values; name a nested parameter with dots")
            twice = [one for index, one in enumerate(values) if one in values[:index]]
            if twice:
                raise ValueError(f"{name}: {twice[0]} is given twice")
        return value

    @model_validator(mode="after")
    def _budgets_of_controls(self) -> Self:
        if self.budgets and self.control is None:
            raise ValueError("only a control may have a budget of its own; all others train alike")
        return self

    def is_in(self, profile: str) -> bool:
        """Whether the profile has the entry's rows."""
        return self.profiles is None or profile in self.profiles


class Contrast(Params):
    """A pair of rows whose difference the tables show."""

    of: str = Field(description="label of a row")
    against: str = Field(description="label of another row")


class Suite(Params):
    """A suite file."""

    version: str = Field(pattern=r"^[A-Za-z0-9_-]+@\d+$", description="name@number; a changed suite is a new number")
    description: str = ""
    data: tuple[str, ...] = Field(min_length=1, description="registered data sets")
    imports: dict[str, str] = Field({}, description="how to get data sets that do not ship: a command by name")
    filters: FilterParams = FilterParams()
    split: SplitParams = SplitParams()
    max_history: int = Field(10, ge=1, description="items of a history, at most the last ones")
    seeds: int | tuple[int, ...] = Field(3, description="a number n means 0 … n-1; a list names them")
    k: tuple[int, ...] = Field((1, 5, 10), min_length=1, description="cut-offs of the metrics")
    primary: str = Field("ndcg@10", description="the metric that decides")
    seen_items: Literal["allowed", "excluded"] = "allowed"
    shared: dict[str, dict[str, Any]] = Field({}, description="parameters by family of methods")
    tuned: str | None = Field(None, description="file that flr-bench tune wrote, relative to the suite's folder")
    recommenders: tuple[RecommenderEntry, ...] = Field(min_length=1)
    contrasts: tuple[Contrast, ...] = ()
    conditions: Conditions = Field(Conditions(), description="further rows of every entry")
    profiles: dict[str, Profile] = Field(min_length=1)

    @field_validator("k")
    @classmethod
    def _positive_and_distinct(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(k < 1 for k in value):
            raise ValueError("every k must be at least 1")
        if len(set(value)) < len(value):
            raise ValueError("a k is given twice")
        return tuple(sorted(value))

    @field_validator("seeds")
    @classmethod
    def _seeds(cls, value: int | tuple[int, ...]) -> int | tuple[int, ...]:
        resolve_seeds(value)
        return value

    @field_validator("data")
    @classmethod
    def _data_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("a data set is given twice")
        return value

    @property
    def name(self) -> str:
        """The version without its number."""
        return self.version.split("@")[0]


def resolve_seeds(value: int | Iterable[int]) -> tuple[int, ...]:
    """``3`` means 0, 1, 2; a list names the seeds.

    Raises:
        ValueError: no seed, a negative one, or one given twice.
    """
    seeds = tuple(range(value)) if isinstance(value, int) else tuple(value)
    if not seeds:
        raise ValueError("at least one seed is needed")
    if any(seed < 0 for seed in seeds):
        raise ValueError("a seed cannot be negative")
    twice = sorted(seed for seed, count in Counter(seeds).items() if count > 1)
    if twice:
        raise ValueError(f"seed {twice[0]} is given twice")
    return seeds


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read ``--seeds``: a number of seeds, or the seeds themselves separated by commas (one alone: ``42,``).

    Raises:
        UsageError: not numbers, none, or one given twice.
    """
    try:
        numbers = [int(part) for part in text.removesuffix(",").split(",")]
        return resolve_seeds(numbers if "," in text else numbers[0])
    except ValueError as error:
        reason = "expected a number such as 3, or a list such as 0,1,2" if "invalid literal" in str(error) else error
        raise UsageError(f"--seeds {text}: {reason}") from error


def split_names(text: str, known: Collection[str]) -> tuple[str, ...]:
    """Names separated by commas, of which the known ones may have commas of their own: the longest that is known."""
    parts = text.split(",")
    found: list[str] = []
    while parts:
        sizes = range(len(parts), 0, -1)
        size = next((size for size in sizes if ",".join(parts[:size]).strip() in known), 1)
        found.append(",".join(parts[:size]).strip())
        del parts[:size]
    return tuple(found)


@dataclass(frozen=True, eq=False)
class SuiteFile:
    """A suite together with where each of its fields stands.

    Attributes:
        suite: the validated content.
        path: the file.
        places: where every field stands, its file and line, by its path of keys and indices.
        replaced: fields that the command line gave in place of the file.
        variant_of: the suite's name in its file, where the command line made it one of another name.
        options: the command line's words that did, for example ``--data cds``.
        notes: what the command line changed that the user should be told of, one line each.
        tuned: the tuned parameters that it names, once they are read.
    """

    suite: Suite
    path: Path
    places: Mapping[Location, Place] = field(repr=False)
    replaced: frozenset[str] = frozenset()
    variant_of: str | None = None
    options: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    tuned: TunedFile | None = None

    def error(self, where: Location, message: str) -> UsageError:
        """An error that names file, line and field, or the option that took the field's place."""
        if where and where[0] in self.replaced:
            return UsageError(f"--{where[0]}: {message}")
        place = place_of(self.places, where) or Place(self.path, 1, where)
        return UsageError(f"{place.path}:{place.line}: {dotted(place.where)}: {message}")

    def profile(self, name: str) -> Profile:
        """The profile of that name.

        Raises:
            UnknownNameError: the suite has no such profile.
        """
        if name not in self.suite.profiles:
            raise UnknownNameError(f"profile of suite {self.suite.name}", name, self.suite.profiles)
        return self.suite.profiles[name]

    def with_devices(self, profile: str, devices: int) -> SuiteFile:
        """The suite with ``devices`` in a profile; cells on several devices run one after another.

        Raises:
            UnknownNameError: the suite has no such profile.
        """
        found = self.profile(profile)
        changed = found.model_copy(update={"devices": devices, "workers": 1 if devices > 1 else found.workers})
        suite = self.suite.model_copy(update={"profiles": {**self.suite.profiles, profile: changed}})
        return replace(self, suite=suite)

    def with_data(self, names: Iterable[str]) -> SuiteFile:
        """The suite on other data sets, under a version of its own, so that neither's tables replace the other's.

        ``smoke@1`` on the data set ``cds`` is ``smoke-cds@1``.

        Raises:
            UsageError: no name, or one given twice.
        """
        data = tuple(names)
        if not all(data) or not data:
            raise UsageError("--data: expected names of data sets, separated by commas")
        twice = sorted({name for name in data if data.count(name) > 1})
        if twice:
            raise UsageError(f"--data: '{twice[0]}' is given twice")
        if data == self.suite.data:
            return self
        varied = self.varied(re.sub(r"[^A-Za-z0-9_-]", "-", "-".join(data)), ("--data", ",".join(data)), {"data": data})
        return replace(varied, replaced=self.replaced | {"data"})

    def varied(self, suffix: str, options: tuple[str, ...], changes: Mapping[str, Any]) -> SuiteFile:
        """The suite with other fields, as the command line's ``options`` ask, under a version of its own."""
        name, _, number = self.suite.version.partition("@")
        suite = self.suite.model_copy(update={**changes, "version": f"{name}-{suffix}@{number}"})
        return replace(self, suite=suite, variant_of=self.variant_of or name, options=(*self.options, *options))

    def check(self, model: type[Model], value: Mapping[str, Any], where: Iterable[Location]) -> Model:
        """Validate parameters that may come from several places of the file.

        Args:
            model: what they must be.
            value: the merged parameters.
            where: the places they were merged from; the first that has the wrong field is named.

        Raises:
            UsageError: with file, line, field and what was expected.
        """
        try:
            return model.model_validate(value)
        except ValidationError as error:
            places = list(where)
            wrong = plain_location(error)
            at = max(places, key=lambda place: self._known(place, wrong))
            raise self.error((*at, *wrong), explain(model, error)) from error

    def _known(self, place: Location, wrong: Location) -> int:
        """How much of the way to a wrong field stands at the place; -1 if not even the place itself."""
        ends = range(len(wrong), -1, -1)
        return next((end for end in ends if (*place, *wrong[:end]) in self.places), -1)


def bundled_suites() -> dict[str, Path]:
    """The suites that ship with flr-bench, by name."""
    import experiments

    folder = Path(next(iter(experiments.__path__)))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_suite(name: str) -> Path:
    """The file of a suite given as a bundled name or as a path.

    Raises:
        UnknownNameError: no bundled suite has that name.
        UsageError: a path was given and there is no such file.
    """
    if name.endswith((".yaml", ".yml")) or "/" in name:
        if not Path(name).is_file():
            raise UsageError(f"there is no suite file {name}; bundled suites: {', '.join(bundled_suites())}")
        return Path(name)
    suites = bundled_suites()
    if name not in suites:
        raise UnknownNameError("suite", name, suites)
    return suites[name]


def load_suite(path: Path) -> SuiteFile:
    """Read and validate a suite file.

    Raises:
        UsageError: unreadable, not YAML, or a field is unknown or ill-typed; names file, line and field.
    """
    try:
        source = read_source(path, tuple(Suite.model_fields), bundled_suites())
    except OSError as error:
        raise UsageError(f"cannot read suite file {path}: {error.strerror}") from error
    try:
        suite = Suite.model_validate(source.content)
    except ValidationError as error:
        raise SuiteFile(Suite.model_construct(), path, source.places).error(
            plain_location(error), explain(Suite, error)
        ) from error
    suite, places = expand(suite, source)
    return SuiteFile(suite, path, places)


def plain_location(error: ValidationError) -> Location:
    """Where the first error stands, as keys and indices."""
    return tuple(error.errors()[0]["loc"])


def explain(model: type[BaseModel], error: ValidationError) -> str:
    """The first error in one line: what was found, what was expected, and how many errors follow."""
    first = error.errors()[0]
    location = tuple(first["loc"])
    if first["type"] == "extra_forbidden":
        known = _fields_at(model, location[:-1])
        text = str(UnknownNameError("field", str(location[-1]), known)) if known else "unknown field"
    elif first["type"] == "missing":
        text = "this field is missing"
    else:
        message = first["msg"].removeprefix("Value error, ")
        found = first["input"]
        shown = f", found {found!r}" if isinstance(found, str | int | float | bool | None) else ""
        text = message[0].lower() + message[1:] + shown
    more = error.error_count() - 1
    return f"{text} (and {more} more error{'s' * (more > 1)})" if more else text


def _fields_at(model: type[BaseModel], location: Location) -> tuple[str, ...]:
    """Names of the fields of the model nested at ``location``; empty if that is not a model."""
    current: Any = model
    for part in location:
        if isinstance(current, type) and issubclass(current, BaseModel) and part in current.model_fields:
            current = current.model_fields[str(part)].annotation
        models = [inner for inner in _annotations(current) if isinstance(inner, type) and issubclass(inner, BaseModel)]
        current = models[0] if models else current
    if isinstance(current, type) and issubclass(current, BaseModel):
        return tuple(current.model_fields)
    return ()


def _annotations(annotation: Any) -> list[Any]:
    """The annotation and everything inside it: of ``tuple[A, ...] | None`` also ``A``."""
    inner = [found for argument in get_args(annotation) for found in _annotations(argument)]
    return [annotation, *inner]
