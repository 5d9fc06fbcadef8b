"""The conformance checks on someone's own method, without pytest."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, TracebackType

from flr_bench.errors import UsageError
from flr_bench.registry import RECOMMENDERS
from flr_bench.testing.conformance import RecommenderConformance


@dataclass(frozen=True)
class CheckResult:
    """One check of one method.

    Attributes:
        method: the registered name.
        check: what was checked, for example ``"save and load"``.
        error: one line that says what is wrong; ``""`` if nothing is.
        traceback: where it happened; ``""`` if nothing is wrong.
    """

    method: str
    check: str
    error: str = ""
    traceback: str = ""

    @property
    def ok(self) -> bool:
        """Whether the check passed."""
        return not self.error


@dataclass(frozen=True)
class CheckReport:
    """All checks of all methods that a package or file registers.

    Attributes:
        target: the package or file.
        methods: the methods found in it.
        results: one per method and check.
    """

    target: str
    methods: tuple[str, ...]
    results: tuple[CheckResult, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return all(result.ok for result in self.results)

    def lines(self) -> Iterator[str]:
        """One line per check, and a last one with the counts."""
        for result in self.results:
            yield f"{'ok  ' if result.ok else 'FAIL'} {result.method}: {result.check}" + (
                "" if result.ok else f": {result.error}"
            )
        failed = sum(not result.ok for result in self.results)
        yield f"{self.target}: {len(self.methods)} methods, {len(self.results)} checks, {failed} failed"


def check(target: str, *, progress: Callable[[CheckResult], None] | None = None) -> CheckReport:
    """Run the conformance checks on every method that a package or file registers.

    The code of ``target`` is imported and executed.

    Args:
        target: an importable package or module, or the path of a ``.py`` file or of a package's folder.
        progress: called after every check.

    Raises:
        UsageError: the target cannot be imported, or registers no method.
    """
    methods = _methods_of(target)
    results = []
    for method in methods:
        for result in check_method(method):
            results.append(result)
            if progress is not None:
                progress(result)
    return CheckReport(target, methods, tuple(results))


def check_method(method: str, cases: type[RecommenderConformance] = RecommenderConformance) -> Iterator[CheckResult]:
    """Run every check of ``cases`` on one registered method.

    Args:
        method: the registered name.
        cases: the checks; a subclass may set parameters.
    """
    subject = type(f"Check_{method}", (cases,), {"method": method})()
    for name in vars(RecommenderConformance):
        if name.startswith("test_"):
            with _Outcome() as outcome:
                getattr(subject, name)()
            yield CheckResult(method, name.removeprefix("test_").replace("_", " "), outcome.line, outcome.traceback)


class _Outcome:
    """Keeps the error of a block, whatever it is: the code under check is someone else's."""

    def __init__(self) -> None:
        self.line = ""
        self.traceback = ""

    def __enter__(self) -> _Outcome:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        first = next(iter(str(error).strip().splitlines()), "")
        self.line = first if isinstance(error, AssertionError) and first else f"{type(error).__name__}: {first}"
        self.traceback = "".join(traceback.format_exception(kind, error, trace))
        return True


def _methods_of(target: str) -> tuple[str, ...]:
    known = set(RECOMMENDERS.names())
    path = Path(target)
    module = _import_path(path, target) if path.exists() else _import_name(target)
    home = module.__name__
    found = [
        name
        for name, entry in RECOMMENDERS
        if name not in known or entry.__module__ == home or entry.__module__.startswith(f"{home}.")
    ]
    if not found:
        raise UsageError(
            f"{target} registers no method; decorate the class with @RECOMMENDERS.register(NAME) "
            "from flr_bench.registry"
        )
    return tuple(found)


def _import_path(path: Path, target: str) -> ModuleType:
    file = path / "__init__.py" if path.is_dir() else path
    if not file.is_file() or file.suffix != ".py":
        raise UsageError(f"{target} is neither a .py file nor a package's folder; give one, or an importable name")
    name = path.resolve().name if path.is_dir() else path.stem
    search = [str(path)] if path.is_dir() else None
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=search)
    if spec is None or spec.loader is None:
        raise UsageError(f"{target} cannot be loaded as Python code")
    module = importlib.util.module_from_spec(spec)
    # Pydantic and dataclasses look a class's module up by name.
    sys.modules[name] = module
    with _Outcome() as outcome:
        spec.loader.exec_module(module)
        _import_submodules(module)
    if outcome.line:
        del sys.modules[name]
        raise UsageError(f"{target} cannot be imported: {outcome.line}")
    return module


def _import_name(target: str) -> ModuleType:
    with _Outcome() as outcome:
        module = importlib.import_module(target)
        _import_submodules(module)
    if outcome.line:
        raise UsageError(f"{target} is no file and cannot be imported: {outcome.line}")
    return module


def _import_submodules(module: ModuleType) -> None:
    for info in pkgutil.iter_modules(getattr(module, "__path__", []), prefix=f"{module.__name__}."):
        importlib.import_module(info.name)
