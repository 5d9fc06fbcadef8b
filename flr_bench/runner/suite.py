"""Suite files: what to compare, as pydantic models of the YAML, with the file's line in every error."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from flr_bench.data.filtering import Sample
from flr_bench.data.prepared import FilterParams, SplitParams
from flr_bench.errors import UnknownNameError, UsageError
from flr_bench.interface import Budget, Params
from flr_bench.runner.conditions import Conditions

if TYPE_CHECKING:
    from flr_bench.runner.tuned import TunedFile

Location = tuple[str | int, ...]
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
    budgets: dict[str, StageBudget] = Field(description="by stage, the same for every method that has the stage")
    shared: dict[str, dict[str, Any]] = Field({}, description="parameters by family, over the suite's own")
    splits: tuple[SplitParams, ...] | None = Field(None, min_length=1, description="in place of the suite's one split")
    sample: Sample | None = Field(None, description="a part of the data, in place of the filters' own sample")
    seeds: int | tuple[int, ...] | None = Field(None, description="in place of the suite's seeds")
    conditions: Conditions | None = Field(None, description="in place of the suite's conditions")

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
    """One entry of a suite; it makes one row per stage and decoding listed."""

    name: str = Field(description="a registered method")
    label: str | None = Field(None, description="name in tables, if not the method's")
    params: dict[str, Any] = Field({}, description="fit parameters, over the shared ones")
    stages: tuple[str, ...] | None = Field(None, min_length=1, description="which to rank; the last by default")
    decodings: tuple[str, ...] | None = Field(None, min_length=1, description="values of the rank parameter 'decoding'")
    rank: dict[str, Any] = Field({}, description="further rank parameters")
    control: str | None = Field(None, description="set for rows that are controls: which one")


class Contrast(Params):
    """A pair of rows whose difference the tables show."""

    of: str = Field(description="label of a row")
    against: str = Field(description="label of another row")


class Suite(Params):
    """A suite file."""

    version: str = Field(pattern=r"^[A-Za-z0-9_-]+@\d+$", description="name@number; a changed suite is a new number")
    description: str = ""
    data: tuple[str, ...] = Field(min_length=1, description="registered data sets")
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
    twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    if twice:
        raise ValueError(f"seed {twice[0]} is given twice")
    return seeds


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read ``--seeds``: a number of seeds, or the seeds themselves separated by commas.

    Raises:
        UsageError: not numbers, none, or one given twice.
    """
    try:
        numbers = [int(part) for part in text.split(",")]
        return resolve_seeds(numbers if "," in text else numbers[0])
    except ValueError as error:
        reason = "expected a number such as 3, or a list such as 0,1,2" if "invalid literal" in str(error) else error
        raise UsageError(f"--seeds {text}: {reason}") from error


@dataclass(frozen=True, eq=False)
class SuiteFile:
    """A suite together with where each of its fields stands.

    Attributes:
        suite: the validated content.
        path: the file.
        lines: line (from 1) of every field, by its path of keys and indices.
        replaced: fields that the command line gave in place of the file.
        notes: what the command line changed that the user should be told of, one line each.
        tuned: the tuned parameters that it names, once they are read.
    """

    suite: Suite
    path: Path
    lines: Mapping[Location, int] = field(repr=False)
    replaced: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    tuned: TunedFile | None = None

    def error(self, where: Location, message: str) -> UsageError:
        """An error that names file, line and field, or the option that took the field's place."""
        if where and where[0] in self.replaced:
            return UsageError(f"--{where[0]}: {message}")
        return UsageError(f"{self.path}:{line_of(self.lines, where)}: {dotted(where)}: {message}")

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
        name, _, number = self.suite.version.partition("@")
        version = re.sub(r"[^A-Za-z0-9_-]", "-", "-".join([name, *data])) + f"@{number}"
        suite = self.suite.model_copy(update={"data": data, "version": version})
        return replace(self, suite=suite, replaced=self.replaced | {"data"})

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
            locations = [(*place, *plain_location(error)) for place in places]
            at = next((location for location in locations if location in self.lines), locations[0])
            raise self.error(at, explain(model, error)) from error


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
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise UsageError(f"cannot read suite file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not a text file in UTF-8: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        raise UsageError(f"{path}:{line}: not valid YAML: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(node, yaml.MappingNode):
        raise UsageError(f"{path}:1: a suite file is a mapping with the fields {', '.join(Suite.model_fields)}")
    lines: dict[Location, int] = {}
    try:
        content = _values(node, (), lines, path)
    except RecursionError as error:
        raise UsageError(f"{path}:1: a field contains itself (a YAML anchor within its own value)") from error
    try:
        suite = Suite.model_validate(content)
    except ValidationError as error:
        location = plain_location(error)
        at = line_of(lines, location)
        raise UsageError(f"{path}:{at}: {dotted(location)}: {explain(Suite, error)}") from error
    return SuiteFile(suite, path, lines)


def _values(node: yaml.Node, where: Location, lines: dict[Location, int], path: Path) -> Any:
    """Turn a YAML node into plain values and note the line of each field."""
    lines.setdefault(where, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        return [_values(child, (*where, index), lines, path) for index, child in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        out: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = _scalar(key_node, path)
            place = (*where, key)
            if key in out:
                raise UsageError(
                    f"{path}:{key_node.start_mark.line + 1}: {dotted(place)}: given twice, first on line {lines[place]}"
                )
            lines[place] = key_node.start_mark.line + 1
            out[key] = _values(value_node, place, lines, path)
        return out
    return _scalar(node, path)


_FLOAT = re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")


def _scalar(node: yaml.Node, path: Path) -> Any:
    line = node.start_mark.line + 1
    if not isinstance(node, yaml.ScalarNode):
        raise UsageError(f"{path}:{line}: a key must be a plain word")
    if node.tag == "tag:yaml.org,2002:str" and node.style is None and _FLOAT.match(node.value):
        return float(node.value)  # YAML 1.1 reads 1e-4 as text
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node, deep=True)
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"{path}:{line}: cannot read '{node.value}': {getattr(error, 'problem', error)}") from error
    finally:
        loader.dispose()


def plain_location(error: ValidationError) -> Location:
    """Where the first error stands, as keys and indices."""
    return tuple(error.errors()[0]["loc"])


def line_of(lines: Mapping[Location, int], where: Location) -> int:
    """Line of the field, or of the nearest field around it."""
    for end in range(len(where), -1, -1):
        if where[:end] in lines:
            return lines[where[:end]]
    return 1


def dotted(where: Location) -> str:
    """A field's path as people write it: ``recommenders[2].params.factors``."""
    text = ""
    for part in where:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".") or "suite"


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


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Later layers over earlier ones; mappings are merged key by key."""
    out: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
            out[key] = merged(out[key], value) if both else value
    return out
