"""The instruction sets that the kernels are built for."""

# Those that extend another one by instructions for low precision; all other kernels are its.
BASE_ISAS = {
    "avx2_vnni": "avx2",
    "avx512_vnni": "avx512",
    "avx512_bf16": "avx512",
    "amx": "avx512",
    "neon_dot": "neon",
    "neon_i8mm": "neon",
}
