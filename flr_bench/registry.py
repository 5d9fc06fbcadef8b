"""One generic registry: names to recommenders, sources, metrics, reasoners, decodings.

An entry registers itself with a decorator in its own file.  The files are found by
:mod:`pkgutil` on first use, third-party packages through entry points; nobody keeps a list.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from flr_bench.errors import FlrBenchError, UnknownNameError

T = TypeVar("T")


class RegistrationError(FlrBenchError):
    """Two entries claim one name, or an entry is not of the registry's kind."""


class Registry(Generic[T]):
    """Names to entries of one kind, filled on first use.

    Args:
        kind: what an entry is called in messages, for example ``"recommender"``.
        locations: importable modules or packages; of a package every direct module is imported.
        group: entry-point group through which third-party packages add entries, or ``None``.
    """

    def __init__(self, kind: str, *, locations: tuple[str, ...], group: str | None = None) -> None:
        """Start empty; the locations are imported on first use."""
        self.kind = kind
        self._locations = locations
        self._group = group
        self._entries: dict[str, T] = {}
        self._discovered = False

    def register(self, name: str) -> Callable[[Any], Any]:
        """Return a decorator that registers a class or function under ``name``.

        Raises:
            RegistrationError: another object already has that name (origins of both are named).
        """

        def decorate(entry: T) -> T:
            known = self._entries.get(name)
            if known is not None and not _same_definition(known, entry):
                raise RegistrationError(
                    f"{self.kind} '{name}' is registered twice: {_origin(known)} and {_origin(entry)}; rename one"
                )
            self._entries[name] = entry
            return entry

        return decorate

    def get(self, name: str) -> T:
        """Return the entry called ``name``.

        Raises:
            UnknownNameError: nothing has that name; the message suggests the nearest ones.
        """
        self._discover()
        if name not in self._entries:
            raise UnknownNameError(self.kind, name, self._entries)
        return self._entries[name]

    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        self._discover()
        return tuple(sorted(self._entries))

    def __iter__(self) -> Iterator[tuple[str, T]]:
        """Iterate over ``(name, entry)`` in the order of names."""
        return iter((name, self._entries[name]) for name in self.names())

    def __contains__(self, name: str) -> bool:
        """Tell whether something is registered under ``name``."""
        self._discover()
        return name in self._entries

    def origin(self, name: str) -> str:
        """Say where the entry is defined, as ``module:line``."""
        return _origin(self.get(name))

    def _discover(self) -> None:
        if self._discovered:
            return
        self._discovered = True  # already now: what is imported below may ask this registry
        try:
            self._import_all()
        except BaseException:
            self._discovered = False
            raise

    def _import_all(self) -> None:
        for location in self._locations:
            module = importlib.import_module(location)
            for info in pkgutil.iter_modules(getattr(module, "__path__", [])):
                importlib.import_module(f"{location}.{info.name}")
        if self._group is not None:
            for point in entry_points(group=self._group):
                self._load(point)

    def _load(self, point: EntryPoint) -> None:
        try:
            point.load()
        except (ImportError, AttributeError, FlrBenchError, SyntaxError, TypeError, ValueError) as error:
            package = point.dist.name if point.dist is not None else point.module
            raise RegistrationError(
                f"the installed package {package} adds a {self.kind} '{point.name}' ({point.value}) that cannot be "
                f"loaded ({type(error).__name__}: {error}); mend it, or remove it with 'pip uninstall {package}'"
            ) from error


def _origin(entry: object) -> str:
    try:
        _, line = inspect.getsourcelines(entry)  # type: ignore[arg-type]
    except (OSError, TypeError):
        return getattr(entry, "__module__", repr(entry))
    return f"{getattr(entry, '__module__', '?')}:{line}"


def _same_definition(first: object, second: object) -> bool:
    """Tell a module imported anew (a file checked twice) from a second claim to the name."""
    keys = ("__module__", "__qualname__")
    return all(getattr(first, key, None) == getattr(second, key, first) for key in keys)


RECOMMENDERS: Registry[Any] = Registry(
    "method", locations=("baselines", "flr_bench.flr.recommender"), group="flr_bench.recommenders"
)
SOURCES: Registry[Any] = Registry("data set", locations=("flr_bench.data.sources",), group="flr_bench.sources")
METRICS: Registry[Any] = Registry("metric", locations=("flr_bench.evaluation.metrics",), group="flr_bench.metrics")
REASONERS: Registry[Any] = Registry(
    "reasoner", locations=("flr_bench.lm.reasoner", "flr_bench.flr.factors"), group="flr_bench.reasoners"
)
DECODINGS: Registry[Any] = Registry("decoding", locations=("flr_bench.lm.decoding",), group="flr_bench.decodings")
PREPARERS: Registry[Any] = Registry("preparation", locations=("flr_bench.lm.pretrain",))
