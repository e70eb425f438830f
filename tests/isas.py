"""The instruction sets that the kernels are built for."""

from __future__ import annotations

from tidegate import _core

# Those that extend another one by instructions for low precision; all other kernels are its.
BASE_ISAS = {
    "avx2_vnni": "avx2",
    "avx512_vnni": "avx512",
    "avx512_bf16": "avx512",
    "amx": "avx512",
    "neon_dot": "neon",
    "neon_i8mm": "neon",
}


def exact_isas() -> list[str]:
    """Those of this build that the machine can run, without the ones that extend another."""
    return [isa for isa in _core.available_isas() if isa not in BASE_ISAS]
