"""What the machine does while a cell is computed: load, memory, energy, read every few seconds by a thread.

It changes no result (it draws no random number and holds no lock that computing needs), takes well
under a thousandth of the time, and keeps no process alive.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from flr_bench.runner.energy import EnergyMeter, nvidia_devices, nvml_handle, nvml_module, rapl_zones
from flr_bench.runner.store import write_json

FORMAT = 1
INTERVAL = 2.0
"""Seconds between two samples at first; doubled whenever there are :data:`MOST_SAMPLES`."""
MOST_SAMPLES = 240
MEGABYTE = 1e6

_log = logging.getLogger("flr_bench.telemetry")

Reader = Callable[[], Mapping[str, float]]


class Samples:
    """Samples over time, of which every second is dropped when there are too many.

    Attributes:
        interval: seconds between two samples that are kept.
    """

    def __init__(self, interval: float = INTERVAL, most: int = MOST_SAMPLES) -> None:
        """None yet."""
        self.interval, self._most = interval, most
        self._rows: list[dict[str, float]] = []

    def add(self, seconds: float, figures: Mapping[str, float]) -> None:
        """Keep a sample taken ``seconds`` after the start."""
        self._rows.append({"seconds": round(seconds, 3), **figures})
        if len(self._rows) >= self._most:
            self._rows = self._rows[::2]
            self.interval *= 2

    def columns(self) -> dict[str, list[float | None]]:
        """One list per figure, ``None`` where a sample lacks it."""
        names = dict.fromkeys(name for row in self._rows for name in row)
        return {name: [row.get(name) for row in self._rows] for name in names}


class Watch:
    """Samples and energy of a block; a daemon thread takes the samples between the first and the last.

    Args:
        reader: reads the figures of one moment.
        meter: counts joules.
        samples: where the samples go.
    """

    def __init__(self, reader: Reader, meter: EnergyMeter, samples: Samples) -> None:
        """Start the thread; nothing is read yet, since use is what happens between two readings."""
        self._reader, self._meter, self._samples = reader, meter, samples
        self._start = time.perf_counter()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="telemetry", daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._ended.wait(self._samples.interval):
            self._take()

    def _take(self) -> None:
        self._meter.update()
        try:
            figures = self._reader()
        except Exception as error:  # noqa: BLE001 - whatever a driver raises, the cell is worth more than a sample
            _log.warning("no sample of the machine: %s", error)
            return
        self._samples.add(time.perf_counter() - self._start, figures)

    def end(self) -> dict[str, Any]:
        """Stop the thread and take the last sample; returns the energy, for ``metrics.json``."""
        self._ended.set()
        self._thread.join()
        self._take()
        return self._meter.figures()

    def record(self) -> dict[str, Any]:
        """Content of ``system.json``."""
        return {"format": FORMAT, "columns": self._samples.columns()}


@contextlib.contextmanager
def watching(device: str, folder: Path | None, figures: dict[str, Any]) -> Iterator[None]:
    """Watch the block; its energy goes into ``figures``, the samples into ``folder``.

    Args:
        device: ``"cpu"``, or a torch device whose GPUs are watched too.
        folder: the cell's folder, which gets ``system.json``; ``None`` writes nothing.
        figures: gets ``energy_joules`` and ``energy_source``, where hardware counts it.
    """
    gpu = device != "cpu"
    watch = Watch(machine_reader(gpu), EnergyMeter([*rapl_zones(), *(nvidia_devices() if gpu else ())]), Samples())
    try:
        yield
    finally:
        figures.update(watch.end())
    if folder is not None:
        write_json(folder / "system.json", watch.record())


def machine_reader(gpu: bool) -> Reader:
    """Reads load and memory of machine and process, under MLflow's names; of the GPUs too where asked for."""
    import psutil

    process = psutil.Process()
    psutil.cpu_percent()  # the first call only sets the clock
    process.cpu_percent()
    of_gpus = _gpu_reader() if gpu else _nothing

    def read() -> dict[str, float]:
        memory = psutil.virtual_memory()
        return {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": round(memory.used / MEGABYTE, 1),
            "system_memory_usage_percentage": memory.percent,
            "process_cpu_utilization_percentage": process.cpu_percent(),
            "process_memory_usage_megabytes": round(process.memory_info().rss / MEGABYTE, 1),
            **of_gpus(),
        }

    return read


def _nothing() -> dict[str, float]:
    return {}


def _gpu_reader() -> Reader:
    """Memory, use and power of torch's present device by NVML; without it what torch itself holds.

    Torch is asked for nothing that calls the driver: that could disturb what another thread records as a graph.
    """
    import torch

    index = torch.cuda.current_device()
    nvml = nvml_module()
    handle = nvml_handle(nvml) if nvml is not None else None
    if handle is None:
        return lambda: {f"gpu_{index}_memory_usage_megabytes": round(torch.cuda.memory_reserved(index) / MEGABYTE, 1)}

    def read() -> dict[str, float]:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        return {
            f"gpu_{index}_memory_usage_megabytes": round(memory.used / MEGABYTE, 1),
            f"gpu_{index}_memory_usage_percentage": round(100 * memory.used / memory.total, 1),
            f"gpu_{index}_utilization_percentage": float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
            f"gpu_{index}_power_usage_watts": nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
        }

    return read
