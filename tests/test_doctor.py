from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from flr_bench import doctor


def test_a_healthy_machine_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines: list[str] = []
    status = doctor.diagnose(False, write=lines.append)
    bad = [line for line in lines if line.startswith("BAD")]
    assert status == (1 if bad else 0)
    text = "".join(lines)
    for word in ("Python", "torch", "recbole", "device", "memory", "disk", "results folder"):
        assert word in text
    assert list(tmp_path.iterdir()) == []


def test_declared_dependencies_apply_to_this_python_and_leave_out_extras() -> None:
    names = {requirement.name for requirement in doctor.requirements()}
    assert {"torch", "transformers", "mlflow"} <= names
    assert not {"recbole", "pytest"} & names


def test_missing_and_outdated_packages_come_with_the_command() -> None:
    absent = doctor.check_package(Requirement("no-such-package-at-all>=2"))
    assert absent.state == "bad"
    assert "install 'no-such-package-at-all>=2'" in absent.remedy
    old = doctor.check_package(Requirement("numpy>=999"))
    assert old.state == "bad"
    assert metadata.version("numpy") in old.found
    assert doctor.check_package(Requirement("numpy>=1")).state == "ok"


def test_fix_installs_recbole_without_its_dependencies_and_only_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor, "missing_for_recbole", lambda: ["recbole", "texttable"])
    monkeypatch.setattr(doctor, "all_checks", lambda: iter([doctor.check_recbole()]))
    calls: list[list[str]] = []
    lines: list[str] = []
    status = doctor.diagnose(True, pip=lambda arguments: calls.append(list(arguments)) or 0, write=lines.append)
    assert calls == [["install", "--no-deps", "recbole==1.2.1"], ["install", "texttable"]]
    assert status == 1
    assert "doctor --fix" in "".join(lines)


def test_fix_with_nothing_missing_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "missing_for_recbole", list)
    calls: list[object] = []
    doctor.mend_recbole(lambda arguments: calls.append(arguments) or 0, calls.append)
    assert calls == []


def test_small_memory_and_blocked_folders_are_told(tmp_path: Path) -> None:
    assert doctor.check_memory(2.0 * 2**30).state == "note"
    assert doctor.check_memory(None).state == "note"
    assert doctor.check_memory(8.0 * 2**30).state == "ok"
    (tmp_path / "file").write_text("")
    blocked = doctor.check_folder(tmp_path / "file" / "results", "results")
    assert blocked.state == "bad"
    assert "--results" in blocked.remedy
    assert doctor.check_folder(tmp_path / "new" / "results", "results").state == "ok"


def test_whether_energy_is_measured_is_told(tmp_path: Path) -> None:
    assert "not measured" in doctor.check_energy(tmp_path).found
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    (zone / "energy_uj").write_text("5\n")
    assert "RAPL" in doctor.check_energy(tmp_path).found
    (zone / "energy_uj").unlink()
    (zone / "energy_uj").mkdir()  # as unreadable as for a user without the right
    refused = doctor.check_energy(tmp_path)
    assert (refused.state, "chmod" in refused.remedy) == ("note", True)
