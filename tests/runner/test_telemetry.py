from __future__ import annotations

import json
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from flr_bench.runner import energy
from flr_bench.runner.energy import EnergyMeter, NvidiaDevice, RaplZone, rapl_zones
from flr_bench.runner.telemetry import Samples, Watch, watching


def zone(root: Path, number: str, name: str, joules: float, span: float = 1000.0) -> Path:
    folder = root / f"intel-rapl:{number}"
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{span * 1e6:.0f}\n")
    count(folder, joules)
    return folder


def count(folder: Path, joules: float) -> None:
    (folder / "energy_uj").write_text(f"{joules * 1e6:.0f}\n")


def test_packages_and_memory_are_added_and_parts_of_a_package_are_not(tmp_path: Path) -> None:
    package, cores = zone(tmp_path, "0", "package-0", 10), zone(tmp_path, "0:0", "core", 5)
    memory, other = zone(tmp_path, "0:1", "dram", 1), zone(tmp_path, "1", "package-1", 100)
    platform = zone(tmp_path, "2", "psys", 7)
    meter = EnergyMeter(rapl_zones(tmp_path))
    for folder, joules in ((package, 13), (cores, 50), (memory, 1.5), (other, 104), (platform, 70)):
        count(folder, joules)
    meter.update()
    assert meter.figures() == {"energy_joules": pytest.approx(3 + 0.5 + 4), "energy_source": "rapl"}
    count(package, 20)
    meter.update()
    assert meter.joules == pytest.approx(7.5 + 7)


def test_a_counter_that_starts_at_0_again_is_followed(tmp_path: Path) -> None:
    package = zone(tmp_path, "0", "package-0", 990)
    meter = EnergyMeter(rapl_zones(tmp_path))
    count(package, 5)
    meter.update()
    assert meter.joules == pytest.approx(15)


def test_what_cannot_be_read_gives_no_figure(tmp_path: Path) -> None:
    assert EnergyMeter(rapl_zones(tmp_path / "nothing")).figures() == {}
    package = zone(tmp_path, "0", "package-0", 1)
    (package / "energy_uj").unlink()
    (package / "energy_uj").mkdir()  # as unreadable as for a user without the right
    assert EnergyMeter(rapl_zones(tmp_path)).figures() == {}


def test_a_counter_that_goes_away_spoils_the_sum(tmp_path: Path) -> None:
    package = zone(tmp_path, "0", "package-0", 1)
    meter = EnergyMeter([*rapl_zones(tmp_path), RaplZone(package, 1000.0)])
    (package / "energy_uj").unlink()
    meter.update()
    assert meter.figures() == {}


def test_a_device_counts_in_millijoules_and_may_not_count_at_all() -> None:
    class NVMLError(Exception):
        pass

    counts = iter([1000, 4500])
    nvml = SimpleNamespace(NVMLError=NVMLError, nvmlDeviceGetTotalEnergyConsumption=lambda _: next(counts))
    meter = EnergyMeter([NvidiaDevice(nvml, "device")])
    meter.update()
    assert meter.figures() == {"energy_joules": 3.5, "energy_source": "nvml"}

    def unsupported(handle: object) -> int:
        raise NVMLError(f"not supported by {handle}")

    nvml.nvmlDeviceGetTotalEnergyConsumption = unsupported
    assert EnergyMeter([NvidiaDevice(nvml, "device")]).figures() == {}


def test_samples_thin_themselves() -> None:
    samples = Samples(interval=1.0, most=8)
    for second in range(100):
        samples.add(float(second), {"cpu": float(second)})
    columns = samples.columns()
    assert columns["seconds"] == columns["cpu"]
    assert len(columns["cpu"]) < 8
    assert samples.interval >= 16
    assert columns["cpu"][0] == 0.0


def test_a_reader_that_fails_costs_its_sample_only() -> None:
    def fail() -> dict[str, float]:
        raise RuntimeError("no driver")

    watch = Watch(fail, EnergyMeter([]), Samples())
    assert watch.end() == {}
    assert watch.record()["columns"] == {}


def test_watching_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = zone(tmp_path / "powercap", "0", "package-0", 1)
    monkeypatch.setattr(energy.rapl_zones, "__defaults__", (tmp_path / "powercap",))
    before, state = threading.active_count(), np.random.get_state()[1].copy()  # type: ignore[index,union-attr]  # noqa: NPY002
    figures: dict[str, object] = {}
    with watching("cpu", tmp_path, figures):
        count(package, 3)
        (thread,) = [t for t in threading.enumerate() if t.name == "telemetry"]
        assert thread.daemon, "it keeps no process alive"
    assert threading.active_count() == before
    assert (np.random.get_state()[1] == state).all()  # type: ignore[index]  # noqa: NPY002
    assert figures == {"energy_joules": pytest.approx(2), "energy_source": "rapl"}
    columns = json.loads((tmp_path / "system.json").read_text())["columns"]
    assert {len(values) for values in columns.values()} == {1}
    assert columns["process_memory_usage_megabytes"][0] > 10


def test_a_block_that_fails_stops_its_thread(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="broken"), watching("cpu", tmp_path, {}):
        raise ValueError("broken")
    assert "telemetry" not in {thread.name for thread in threading.enumerate()}
    assert not (tmp_path / "system.json").exists()
