"""Energy that a block of work took, from counters of the hardware; nothing is ever estimated.

Two counters: Intel's and AMD's RAPL (Linux, ``/sys/class/powercap``), which measures whole processor
packages and their memory, and NVIDIA's total energy counter of each device.  Both count everything that
runs there, not one process: next to other work the figure is an upper bound of the cell's own.

codecarbon was tried and left: where RAPL is absent it estimates (share of load times a table's thermal
design power, 20 W for memory), and where RAPL is present it reads the very files that are read here.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

POWERCAP = Path("/sys/class/powercap")
MICROJOULES, MILLIJOULES = 1e6, 1e3


class Counter(Protocol):
    """Something that counts joules."""

    @property
    def source(self) -> str:
        """Name of the kind of counter."""

    @property
    def span(self) -> float | None:
        """Joules after which it starts at 0 again; ``None`` if it does not."""

    def read(self) -> float:
        """Joules since some moment.

        Raises:
            OSError: it cannot be read (any more).
        """


@dataclass(frozen=True)
class RaplZone:
    """One counter of RAPL: a package, or the memory beside it.

    Attributes:
        folder: its folder below ``/sys/class/powercap``.
        span: see :class:`Counter`.
    """

    folder: Path
    span: float | None
    source: str = "rapl"

    def read(self) -> float:
        """See :meth:`Counter.read`."""
        return _number(self.folder / "energy_uj") / MICROJOULES


@dataclass(frozen=True)
class NvidiaDevice:
    """The counter of one NVIDIA device.

    Attributes:
        nvml: the module ``pynvml``, initialised.
        handle: its handle of the device.
    """

    nvml: Any
    handle: Any
    span: float | None = None
    source: str = "nvml"

    def read(self) -> float:
        """See :meth:`Counter.read`."""
        try:
            return float(self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle)) / MILLIJOULES
        except self.nvml.NVMLError as error:
            raise OSError(str(error)) from error


@dataclass
class EnergyMeter:
    """Adds up what counters count from its making on.

    Call :meth:`update` more often than the counters wrap around (RAPL's do after minutes under load).

    Attributes:
        counters: those that could be read at the start.
        joules: what they counted since.
    """

    counters: Sequence[Counter]
    joules: float = 0.0
    _last: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Read every counter once; those that cannot be read are left out."""
        readable = [(counter, value) for counter in self.counters if (value := _read(counter)) is not None]
        self.counters = [counter for counter, _ in readable]
        self._last = [value for _, value in readable]

    @property
    def source(self) -> str:
        """The counters' names, joined by ``+``; empty if there are none."""
        return "+".join(sorted({counter.source for counter in self.counters}))

    def update(self) -> None:
        """Add what was counted since the last time; a counter that cannot be read any more spoils the sum."""
        for index, counter in enumerate(self.counters):
            now = _read(counter)
            if now is None:
                self.counters, self._last = [], []
                return
            gone = now - self._last[index]
            if gone < 0:
                gone = gone + counter.span if counter.span else 0.0
            self.joules += gone
            self._last[index] = now

    def figures(self) -> dict[str, Any]:
        """``energy_joules`` and ``energy_source``, or nothing where nothing could be read."""
        return {"energy_joules": self.joules, "energy_source": self.source} if self.counters else {}


def rapl_zones(root: Path = POWERCAP) -> list[RaplZone]:
    """The packages and their memory; parts of a package (cores, graphics) are in its figure already.

    Args:
        root: where the kernel lists power zones.
    """
    zones = []
    for folder in sorted(root.glob("intel-rapl:*")):
        with contextlib.suppress(OSError, ValueError):
            name = (folder / "name").read_text(encoding="ascii").strip()
            if name.startswith("package") or name == "dram":
                zones.append(RaplZone(folder, _number(folder / "max_energy_range_uj") / MICROJOULES))
    return zones


def nvidia_devices() -> list[NvidiaDevice]:
    """The counter of torch's present device; none without ``pynvml`` or where the device does not count."""
    nvml = nvml_module()
    handle = nvml_handle(nvml) if nvml is not None else None
    return [] if handle is None else [NvidiaDevice(nvml, handle)]


def nvml_module() -> Any:
    """``pynvml``, initialised, or ``None`` where it (the extra ``gpu``) or a driver is missing."""
    try:
        nvml = importlib.import_module("pynvml")  # optional
        nvml.nvmlInit()
    except ImportError:
        return None
    except Exception as error:
        if type(error).__name__.startswith("NVMLError"):  # its classes are made when it is initialised
            return None
        raise
    return nvml


def nvml_handle(nvml: Any) -> Any:
    """NVML's handle of torch's present device, found by its identity: NVML does not obey CUDA_VISIBLE_DEVICES.

    ``None`` for a part of a device (MIG), whose use and energy NVML does not tell.
    """
    import torch

    name = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
    try:
        return nvml.nvmlDeviceGetHandleByUUID(name if name.startswith("GPU-") else f"GPU-{name}")
    except nvml.NVMLError:
        return None


def _read(counter: Counter) -> float | None:
    try:
        return counter.read()
    except (OSError, ValueError):
        return None


def _number(path: Path) -> float:
    return float(path.read_text(encoding="ascii").strip())
