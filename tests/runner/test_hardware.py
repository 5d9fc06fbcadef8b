from __future__ import annotations

from pathlib import Path

import pytest

from flr_bench.runner import hardware
from flr_bench.runner.execute import environment

X86 = """\
processor\t: 0
model name\t: Some CPU v3
flags\t\t: fpu sse4_2 avx avx2 avx512f fma ht amx_bf16

processor\t: 1
model name\t: Another
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd sve2 crc32\n"


@pytest.mark.parametrize(
    ("text", "model", "flags"),
    [
        (X86, "Some CPU v3", ["amx_bf16", "avx", "avx2", "avx512f", "fma", "sse4_2"]),
        (ARM, None, ["asimd", "sve2"]),
        (None, None, []),
    ],
)
def test_the_processor_is_described_by_what_decides_the_bits(
    text: str | None, model: str | None, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(_: Path, **__: object) -> str:
        if text is None:
            raise FileNotFoundError
        return text

    monkeypatch.setattr(Path, "read_text", read)
    found = hardware.processor.__wrapped__()
    assert found["flags"] == flags
    assert found["model"] == model if model else found["model"]


def test_it_stands_in_every_cells_environment() -> None:
    assert environment()["processor"] == hardware.processor()
    assert hardware.accelerator("cpu") == {}
