"""What of a machine's hardware decides the bits of a result: the processor and its vector instructions."""

from __future__ import annotations

import platform
import re
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["accelerator", "processor"]

_VECTORS = re.compile(r"sse4_[12]|avx\w*|fma|f16c|amx_\w+|asimd\w*|sve\w*|neon|bf16|i8mm")
"""Flags of instructions that numerical libraries choose their code by, on x86 and on ARM."""


@cache
def processor() -> dict[str, Any]:
    """Model and vector instructions of the processor: another code path rounds otherwise."""
    fields: dict[str, str] = {}
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    for line in text.partition("\n\n")[0].splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip().lower(), value.strip())
    model = fields.get("model name") or platform.processor() or platform.machine()
    words = (fields.get("flags") or fields.get("features") or "").split()
    return {"model": model, "flags": sorted({word for word in words if _VECTORS.fullmatch(word)})}


def accelerator(device: str) -> dict[str, str]:
    """Name and CUDA version of the GPU that cells on ``device`` run on; nothing for the CPU."""
    if device == "cpu":
        return {}
    import torch

    return {"gpu": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda)}
