"""The file of tuned parameters that ``flr-bench tune`` writes, as a suite takes it in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from flr_bench.errors import UsageError
from flr_bench.runner.suite import SuiteFile
from flr_bench.runner.suite_source import merged


def read_tuned(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The parameters of a tuned-parameters file, by data and label of the method.

    Raises:
        UsageError: the file is missing or is no such file.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return {(entry["data"], entry["method"]): dict(entry["params"]) for entry in content["tuned"]}
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}; flr-bench tune writes it") from error
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError, ValueError) as error:
        raise UsageError(f"{path} is no file of tuned parameters; flr-bench tune writes them") from error


def with_tuned(file: SuiteFile) -> SuiteFile:
    """The suite with its tuned parameters: over the shared ones, under an entry's own.

    An entry takes those of its label, or else of its method, so that controls follow what they control.

    Raises:
        UsageError: the file cannot be used, or tunes nothing of the suite's data; names file and line.
    """
    suite = file.suite
    if suite.tuned is None:
        return file
    if len(suite.data) > 1:
        raise file.error(("tuned",), "parameters are tuned per data set; a suite that names them has one, see --data")
    path = file.path.parent / suite.tuned
    try:
        found = {method: params for (data, method), params in read_tuned(path).items() if data == suite.data[0]}
    except UsageError as error:
        raise file.error(("tuned",), str(error)) from error
    if not found:
        raise file.error(("tuned",), f"{path} has nothing tuned on {suite.data[0]}")
    entries = []
    for entry in suite.recommenders:
        tuned = found.get(entry.label or entry.name, found.get(entry.name, {}))
        entries.append(entry.model_copy(update={"params": merged(tuned, entry.params)}))
    return replace(file, suite=suite.model_copy(update={"recommenders": tuple(entries)}))
