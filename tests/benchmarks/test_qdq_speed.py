"""How fast the oracle is, in elements a second on one core: it must not dominate a numerics
suite.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from harness import formats

ELEMENTS = 1 << 22
CASES: dict[str, dict[str, Any]] = {
    "E4M3": {"format": "E4M3", "amax": 3.0},
    "E4M3-per-channel": {"format": "E4M3", "axis": 0},
    "INT8": {"format": "INT8", "amax": 3.0},
    "INT4-block128": {"format": "INT4", "block_sizes": {-1: 128}},
    "NVFP4": {"format": "E2M1", "block_sizes": {-1: 16}, "scale_format": "E4M3"},
    "MXFP8": {"format": "E4M3", "block_sizes": {-1: 32}, "scale_format": "E8M0"},
}


@pytest.mark.benchmark(group="oracle")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_oracle(benchmark: BenchmarkFixture, case: str, dtype: torch.dtype) -> None:
    """Quantize-dequantize of 4 Mi elements; `extra_info` holds the elements a second of the fastest
    round.
    """
    x = torch.randn(2048, ELEMENTS // 2048, generator=torch.Generator().manual_seed(0)).to(dtype)

    benchmark.pedantic(
        formats.quantize_dequantize, args=(x,), kwargs=CASES[case], rounds=5, warmup_rounds=1
    )

    if benchmark.stats is not None:
        benchmark.extra_info["elements_per_second"] = round(ELEMENTS / benchmark.stats.stats.min)
