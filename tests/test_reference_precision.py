# The low precisions of tidegate.reference against float32 in NumPy, fractions, hand-made cases.
"""The reference specifies bfloat16 and int8, so nothing of this project is used to check it."""

from __future__ import annotations

import itertools
import math
import re
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from tidegate import reference

EPS = float(np.finfo(np.float64).eps)
FLOAT_MAX = float(np.finfo(np.float32).max)
FLOAT_MIN = 2.0**-126  # the least normal number
PRECISIONS = ["bfloat16", "bfloat16-dot", "int8"]


def single(values: Any) -> np.ndarray:
    return np.asarray(values, dtype=np.float32)


def assert_same_bits(got: np.ndarray, want: np.ndarray) -> None:
    """Equal, signs of zeros included; any NaN for a NaN."""
    assert got.dtype == want.dtype == np.float32
    np.testing.assert_array_equal(got, want)
    numbers = ~np.isnan(want)
    np.testing.assert_array_equal(np.signbit(got[numbers]), np.signbit(want[numbers]))


# ---- The same roundings in NumPy -----------------------------------------------------------------


def numpy_quantize(v: np.ndarray, least: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Along the last axis, every operation in float32."""
    assert v.dtype == np.float32
    finite = np.isfinite(v).all(axis=-1)
    v = np.where(finite[..., None], v, single(0))
    m = np.maximum(np.abs(v).max(axis=-1, initial=0), single(least))
    m = np.where(m < single(2.0**-100), single(127), m)
    q = np.rint(v * (single(127) / m)[..., None])
    assert q.dtype == np.float32
    return q.astype(np.int8), np.where(finite, m / single(127), single(np.nan))


def numpy_bfloat16(v: np.ndarray) -> np.ndarray:
    """Rounds to multiples of the last of 8 significant bits, which float64 does exactly."""
    assert v.dtype == np.float32
    exact = v.astype(np.float64)
    _, exponent = np.frexp(exact)
    place = np.ldexp(1.0, np.maximum(exponent - 8, -133))
    with np.errstate(over="ignore"):
        return single(np.rint(exact / place) * place)


def numpy_operand(v: np.ndarray, precision: str, least: float = 0.0) -> np.ndarray:
    """float64 values rounded along the last axis, as a product sees them."""
    if precision != "int8":
        return numpy_bfloat16(single(v)).astype(np.float64)
    q, scale = numpy_quantize(single(v), least)
    return q * scale.astype(np.float64)[..., None]


# ---- int8 ----------------------------------------------------------------------------------------


def near_ties(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Random rows whose v_k * 127/m are close to halves of odd integers, within a few roundings."""
    m = single(2.0 ** rng.uniform(-90, 90, (rows, 1)))
    halves = rng.integers(-127, 127, (rows, columns)) + 0.5
    v = single(halves * m / 127)
    v = (v.view(np.int32) + rng.integers(-2, 3, v.shape, dtype=np.int32)).view(np.float32)
    v[:, :1] = m
    return v


def test_quantize_is_float32_arithmetic() -> None:
    rng = np.random.default_rng(0)
    v = near_ties(rng, 200, 50)
    q, scale = reference.quantize(v)
    want_q, want_scale = numpy_quantize(v)
    assert q.dtype == np.int8
    np.testing.assert_array_equal(q, want_q)
    assert_same_bits(scale, want_scale)
    # The roundings of 127/m and of its product matter for such values.
    exact = np.rint(v.astype(np.float64) * 127 / v[:, :1].astype(np.float64))
    assert (q != exact).any()


def test_quantize_ties_to_even() -> None:
    v = [[127, 0.5, 1.5, 2.5, 126.5, -0.5, -1.5, -2.5, -125.5, -126.5, -127]]
    q, scale = reference.quantize(v)
    assert q.tolist() == [[127, 0, 2, 2, 126, 0, -2, -2, -126, -126, -127]]
    assert scale.tolist() == [1]


@pytest.mark.parametrize("m", [2.0**-100, 1e-20, 0.3, 1.0, 127.0, 3e38, FLOAT_MAX])
def test_quantize_uses_the_whole_range(m: float) -> None:
    q, scale = reference.quantize(single([[m, -m, m / 2, 0]]))
    assert q.tolist() == [[127, -127, 64, 0]]
    assert scale.tolist() == [single(m) / single(127)]


def test_quantize_zeros_and_tiny_rows_have_the_scale_one() -> None:
    below = float(np.nextafter(single(2.0**-100), single(0)))
    rows = [[0.0, -0.0], [below, -below], [2.0**-149, 0], [2.0**-100, 0]]
    q, scale = reference.quantize(rows)
    assert q.tolist() == [[0, 0], [0, 0], [0, 0], [127, 0]]
    assert scale.tolist() == [1, 1, 1, single(2.0**-100) / single(127)]


def test_quantize_nothing() -> None:
    q, scale = reference.quantize(np.zeros((2, 0)))
    assert q.shape == (2, 0)
    assert scale.tolist() == [1, 1]
    q, scale = reference.quantize(np.zeros((0, 3)))
    assert q.shape == (0, 3)
    assert scale.shape == (0,)


@pytest.mark.parametrize("least", [0.0, 1.0])
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_quantize_a_row_that_is_not_finite(bad: float, least: float) -> None:
    v = single([[1, 2, 3], [1, bad, 3], [bad, 0, 0], [4, 5, 6]])
    q, scale = reference.quantize(v, least)
    assert not q[1:3].any()
    assert np.isnan(scale[1:3]).all()
    healthy, healthy_scale = reference.quantize(v[[0, 3]], least)
    np.testing.assert_array_equal(q[[0, 3]], healthy)
    assert_same_bits(scale[[0, 3]], healthy_scale)


def test_quantize_with_a_least_range() -> None:
    v = [[0.5, -0.25, 0.003, 0.004], [0, 0, 0, 0], [-1, 1, 0.5, 0], [2, -4, 1, 0]]
    q, scale = reference.quantize(v, 1.0)
    assert q.tolist() == [[64, -32, 0, 1], [0, 0, 0, 0], [-127, 127, 64, 0], [64, -127, 32, 0]]
    fixed = single(1) / single(127)
    assert_same_bits(scale, single([fixed, fixed, fixed, single(4) / single(127)]))
    rng = np.random.default_rng(1)
    v = single(rng.normal(0, 0.5, (100, 20)))
    for got, want in zip(reference.quantize(v, 1.0), numpy_quantize(v, 1.0)):
        np.testing.assert_array_equal(got, want)


def test_quantized_weights_are_quantised_to_themselves() -> None:
    """The float32 values q*scale have the same q and scale again; m takes many significands."""
    rng = np.random.default_rng(2)
    m = single(2.0 ** np.concatenate([rng.uniform(-99.9, 127.9, 20000), np.linspace(-1, 1, 20000)]))
    m[:3] = [2.0**-100, 0, 1]
    v = single(
        m[:, None]
        * np.concatenate([rng.choice([-1, 1], (40000, 1)), rng.uniform(-1, 1, (40000, 6))], axis=1)
    )
    q, scale = reference.quantize(v)
    again, again_scale = reference.quantize(q * scale[:, None])
    np.testing.assert_array_equal(again, q)
    assert_same_bits(again_scale, scale)


def test_int8_product_is_float32_around_an_exact_sum() -> None:
    """Sums of more than 24 bits are rounded, to even; the order of the scales matters."""
    rng = np.random.default_rng(3)
    N, M, K = 6, 7, 3000
    q = rng.integers(90, 128, (N, K)).astype(np.int8)
    weight_q = (rng.integers(90, 128, (M, K)) * rng.choice([-1, 1], (M, 1))).astype(np.int8)
    scale, weight_scale = single(rng.uniform(0.001, 1, N)), single(rng.uniform(0.001, 1, M))
    start = single(rng.normal(0, 1e4, (N, M)))
    got = reference.int8_product(start, q, scale, weight_q, weight_scale)
    acc = q.astype(np.int64) @ weight_q.astype(np.int64).T
    assert (acc != single(acc)).any()
    assert_same_bits(got, start + (single(acc) * weight_scale) * scale[:, None])
    assert (got != start + single(acc) * (weight_scale * scale[:, None])).any()
    assert (got != single(start + acc * weight_scale.astype(float) * scale[:, None])).any()


@pytest.mark.parametrize("K", [0, 1, 2, 31, 64, 65])
def test_int8_product_of_extremes(K: int) -> None:
    signs = np.array([[1], [-1]])
    q = np.full((2, K), 127) * signs
    got = reference.int8_product(
        np.full((2, 2), 0.5), q.astype(np.int8), [1, 0.25], q.astype(np.int8), [1, 2]
    )
    acc = 127 * 127 * K
    want = [[acc + 0.5, -2 * acc + 0.5], [-acc / 4 + 0.5, acc / 2 + 0.5]]
    assert got.tolist() == want


def test_int8_product_of_a_row_that_is_not_finite() -> None:
    """Zeros times a NaN scale: NaN for that row of v, or for that row of the matrix."""
    q, scale = reference.quantize([[1, 2], [np.inf, 2]])
    weight_q, weight_scale = reference.quantize([[1, 1], [np.nan, 1], [-1, 1]])
    got = reference.int8_product(np.zeros((2, 3)), q, scale, weight_q, weight_scale)
    assert np.isnan(got).tolist() == [[False, True, False], [True, True, True]]


def test_int8_product_flushes_denormals() -> None:
    def product(start: float, scale: float, weight_scale: float, q: int = 1) -> np.ndarray:
        given = np.array([[q]], np.int8), np.array([[abs(q)]], np.int8)
        return reference.int8_product([[start]], given[0], [scale], given[1], [weight_scale])

    # Inputs: start and both scales.
    assert_same_bits(product(-(2.0**-130), 0, 1), single([[0]]))  # -0 + 0
    assert_same_bits(product(-(2.0**-130), 0, 1, q=-1), single([[-0.0]]))
    assert_same_bits(product(0, 2.0**-130, 1, q=127), single([[0]]))
    assert_same_bits(product(1, 2.0**127, 2.0**-130, q=127), single([[1]]))
    # Results: of both products and of the sum.
    assert_same_bits(product(1, 2.0**127, 2.0**-126 / 127, q=1), single([[1]]))
    assert_same_bits(product(1.5 * FLOAT_MIN, 2.0**-70, 2.0**-60), single([[1.5 * FLOAT_MIN]]))
    assert_same_bits(product(1.5 * FLOAT_MIN, -(2.0**-66), 2.0**-60), single([[0]]))


# ---- bfloat16 ------------------------------------------------------------------------------------


def test_round_to_bfloat16_is_to_nearest_even() -> None:
    """Every upper half of a float32, with lower halves at and around the tie."""
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    v = (upper[:, None] | lower).view(np.float32)
    numbers = ~np.isnan(v)
    got = reference.round_to_bfloat16(v)
    assert got.shape == v.shape
    want = numpy_bfloat16(np.where(numbers, v, single(0)))
    assert_same_bits(got[numbers], want[numbers])
    assert not (got.view(np.uint32) & 0xFFFF).any()
    assert np.isnan(got[~numbers]).all()
    assert (got[~numbers].view(np.uint32) & 0x00400000).all()  # quiet


@pytest.mark.parametrize(
    ("value", "rounded"),
    [
        (1.0, 1.0),
        (1 + 2.0**-8, 1.0),  # ties
        (1 + 3 * 2.0**-8, 1 + 2.0**-6),
        (-1 - 2.0**-8 - 2.0**-23, -1 - 2.0**-7),
        (2 - 2.0**-8, 2.0),  # carries into the exponent
        (math.pi, 3.140625),
        (0.1, 0.10009765625),
        (-0.0, -0.0),
        (np.inf, np.inf),
        (-np.inf, -np.inf),
        ((2 - 2.0**-7) * 2.0**127, (2 - 2.0**-7) * 2.0**127),  # the largest bfloat16
        ((2 - 2.0**-8) * 2.0**127, np.inf),  # a tie
        (float(np.nextafter(single((2 - 2.0**-8) * 2.0**127), single(0))), 255 * 2.0**120),
        (-FLOAT_MAX, -np.inf),
        (FLOAT_MIN - 2.0**-149, FLOAT_MIN),
        (2.0**-134, 0.0),  # half of the least bfloat16
        (3 * 2.0**-134, 2.0**-132),
        (-(2.0**-149), -0.0),
    ],
)
def test_round_to_bfloat16_of_a_number(value: float, rounded: float) -> None:
    got = reference.round_to_bfloat16(value)
    assert_same_bits(got, single(rounded))
    assert got.shape == ()


def test_round_to_bfloat16_keeps_shapes() -> None:
    v = np.asfortranarray(np.random.default_rng(4).normal(size=(2, 3, 4)))
    before = v.copy()
    assert_same_bits(reference.round_to_bfloat16(v), numpy_bfloat16(single(v)))
    np.testing.assert_array_equal(v, before)
    assert reference.round_to_bfloat16(np.zeros((2, 0))).shape == (2, 0)


def to_single(exact: Fraction, zero: float) -> float:
    """The nearest float32, ties to even, denormal numbers flushed; `zero` if it is exactly 0."""
    if exact == 0:
        return zero
    exponent = 0  # of the last place: 2^23 <= |exact| / 2^exponent < 2^24
    while abs(exact) >= Fraction(2) ** (exponent + 24):
        exponent += 1
    while abs(exact) < Fraction(2) ** (exponent + 23):
        exponent -= 1
    nearest = float(round(exact / Fraction(2) ** exponent) * Fraction(2) ** exponent)
    if abs(nearest) >= 2.0**128:
        return math.copysign(math.inf, nearest)
    return math.copysign(0.0, nearest) if abs(nearest) < FLOAT_MIN else nearest


def exact_add(a: float, b: float) -> float:
    return to_single(Fraction(a) + Fraction(b), a + b)


def exact_fma(a: float, b: float, c: float) -> float:
    # Products of 8 bits each are exact in float64, and so is the sign of a zero.
    return to_single(Fraction(a) * Fraction(b) + Fraction(c), a * b + c)


def exact_blocks(start: float, v: list[float], w: list[float]) -> float:
    """A row of `bfloat16_product`; the numbers are normal or zero, v and w of bfloat16."""
    a = start
    while v:
        pairs = list(zip(v[:32], w[:32]))
        short = len(pairs) < 32
        even = odd = 0.0
        for first, second in itertools.zip_longest(pairs[::2], pairs[1::2]):
            even = exact_fma(*first, even)
            odd = odd if second is None else exact_fma(*second, odd)
        if short:
            even, odd = even + 0.0, odd + 0.0
        a = exact_add(a, exact_add(even, odd))
        v, w = v[32:], w[32:]
    return a


def exact_pairs(start: float, v: list[float], w: list[float]) -> float:
    """A row of `bfloat16_dot_product`."""
    a = start
    for first, second in itertools.zip_longest(
        zip(v[::2], w[::2]), zip(v[1::2], w[1::2]), fillvalue=(0.0, 0.0)
    ):
        a = exact_fma(*first, exact_fma(*second, a))
    return a


@pytest.mark.parametrize(
    ("product", "exact"),
    [
        (reference.bfloat16_product, exact_blocks),
        (reference.bfloat16_dot_product, exact_pairs),
    ],
)
@pytest.mark.parametrize("K", [0, 1, 2, 31, 32, 33, 63, 64, 100])
def test_bfloat16_products_are_these_roundings_in_this_order(
    K: int, product: Any, exact: Any
) -> None:
    rng = np.random.default_rng(K)
    N, M = 3, 4
    # The sizes differ widely so that sums are rounded; most values are no bfloat16.
    v = single(rng.normal(size=(N, K)) * 2.0 ** rng.integers(-6, 6, (N, K)))
    weight = single(rng.normal(size=(M, K)) * 2.0 ** rng.integers(-6, 6, (M, K)))
    start = single(rng.normal(size=(N, M)))
    got = product(start, v, weight)
    rounded_v, rounded_weight = numpy_bfloat16(v), numpy_bfloat16(weight)
    want = [
        [
            exact(float(start[b, j]), rounded_v[b].tolist(), rounded_weight[j].tolist())
            for j in range(M)
        ]
        for b in range(N)
    ]
    assert_same_bits(got, single(want).reshape(N, M))


def arguments(start: float, products: dict[int, Any], K: int) -> tuple[Any, ...]:
    """start, v and weight, which are 0 but for some k: v_k, or the pair v_k, weight_k."""
    v, weight = np.zeros((1, K)), np.zeros((1, K))
    for k, given in products.items():
        v[0, k], weight[0, k] = given if isinstance(given, tuple) else (given, 1)
    return [[start]], v, weight


BIG = 2.0**24  # BIG + 1 rounds to BIG


@pytest.mark.parametrize(
    ("start", "products", "K", "result"),
    [
        # Even and odd k have their own sums: a single one would be 1.
        (0, {0: BIG, 1: 1, 2: -BIG, 3: 1}, 4, 2),
        # They are added to each other first, then to a: -BIG + BIG + 1 would be 1.
        (-BIG, {0: BIG, 1: 1}, 2, 0),
        # The sums begin at 0, not at a: BIG + 1 + 1 would be BIG.
        (BIG, {0: 1, 1: 1}, 2, BIG + 2),
        (BIG, dict.fromkeys(range(32), 1), 32, BIG + 32),
        # A block ends at 32: the odd sum of a longer one would be 2.
        (BIG, {31: 1, 33: 1}, 34, BIG),
        (BIG, {29: 1, 31: 1}, 34, BIG + 2),
        # In a block k ascends.
        (0, {0: 1, 2: BIG, 4: -BIG}, 5, 0),
        (0, {0: BIG, 2: -BIG, 4: 1}, 5, 1),
        # One rounding of v*w + sum: the product alone would overflow, or underflow.
        (0, {0: -(2.0**127), 2: (2.0**127, 2)}, 4, 2.0**127),
        (0, {0: FLOAT_MIN, 2: (2.0**-70, 2.0**-70)}, 4, FLOAT_MIN + 2.0**-140),
    ],
)
def test_bfloat16_product_by_hand(
    start: float, products: dict[int, Any], K: int, result: float
) -> None:
    got = reference.bfloat16_product(*arguments(start, products, K))
    assert_same_bits(got, single([[result]]))


UNDERFLOW = (-(2.0**-70), 2.0**-60)  # -2^-130, which is flushed to -0


@pytest.mark.parametrize(
    ("start", "products", "K", "result"),
    [
        # Inputs: v, weight (denormal as bfloat16, too) and start.
        (1, {0: (2.0**-130, 2.0**127)}, 1, 1),
        (1, {0: (2.0**127, -(2.0**-127))}, 1, 1),
        (1, {0: (FLOAT_MIN - 2.0**-149, 2.0**126)}, 1, 2),  # rounds to a normal bfloat16
        (2.0**-127, {0: FLOAT_MIN}, 1, FLOAT_MIN),
        (-(2.0**-127), {}, 0, -0.0),
        # Results: of fma, of even + odd, of the sum with a.
        (FLOAT_MIN, {30: UNDERFLOW}, 32, FLOAT_MIN),
        (FLOAT_MIN, {0: 1.5 * FLOAT_MIN, 1: -FLOAT_MIN}, 2, FLOAT_MIN),
        (1.5 * FLOAT_MIN, {0: -FLOAT_MIN}, 1, 0.0),
        (-1.5 * FLOAT_MIN, {0: FLOAT_MIN}, 1, -0.0),
        # -0 is kept only if both sums of a whole block are -0.
        (-0.0, {30: UNDERFLOW, 31: UNDERFLOW}, 32, -0.0),
        (-0.0, {31: UNDERFLOW}, 32, 0.0),
        (-0.0, {30: UNDERFLOW}, 32, 0.0),
        (-0.0, {29: UNDERFLOW, 30: UNDERFLOW}, 31, 0.0),
        (-0.0, {0: UNDERFLOW, 1: UNDERFLOW}, 2, 0.0),
        (-0.0, {0: 0.0}, 1, 0.0),
        (-0.0, {}, 0, -0.0),
    ],
)
def test_bfloat16_product_flushes_denormals(
    start: float, products: dict[int, Any], K: int, result: float
) -> None:
    got = reference.bfloat16_product(*arguments(start, products, K))
    assert_same_bits(got, single([[result]]))


@pytest.mark.parametrize(
    ("start", "products", "K", "result"),
    [
        # A single sum, which begins at a.
        (BIG, {0: 1, 1: 1}, 2, BIG),
        (BIG, dict.fromkeys(range(32), 1), 32, BIG),
        # Of a pair, the odd k is first; pairs ascend.
        (0, {0: 1, 1: BIG, 2: -BIG}, 3, 0),
        (1, {0: -BIG, 1: BIG}, 2, 0),
        (0, {0: BIG, 1: 1, 3: -BIG}, 4, 0),
        (0, {0: 1, 1: 1, 2: BIG, 4: -BIG}, 5, 2),
        # One rounding of v*w + sum.
        (0, {1: -(2.0**127), 0: (2.0**127, 2)}, 2, 2.0**127),
        # Denormal inputs and results.
        (1, {0: (2.0**-130, 2.0**127)}, 1, 1),
        (1, {1: (2.0**127, -(2.0**-127))}, 2, 1),
        (-(2.0**-127), {}, 0, -0.0),
        (1.5 * FLOAT_MIN, {0: -FLOAT_MIN, 1: FLOAT_MIN / 4}, 2, 0.0),
        (-1.5 * FLOAT_MIN, {1: FLOAT_MIN}, 2, 0.0),  # -0, to which the product of zeros is added
        (-1.5 * FLOAT_MIN, {0: FLOAT_MIN}, 2, -0.0),
        # -0 is kept only without a product.
        (-0.0, {}, 0, -0.0),
        (-0.0, {0: 0.0}, 1, 0.0),
        (-0.0, {0: UNDERFLOW, 1: UNDERFLOW}, 2, -0.0),
        (-0.0, {1: UNDERFLOW}, 2, 0.0),
    ],
)
def test_bfloat16_dot_product_by_hand(
    start: float, products: dict[int, Any], K: int, result: float
) -> None:
    got = reference.bfloat16_dot_product(*arguments(start, products, K))
    assert_same_bits(got, single([[result]]))


@pytest.mark.parametrize("product", [reference.bfloat16_product, reference.bfloat16_dot_product])
def test_bfloat16_products_of_what_is_not_finite(product: Any) -> None:
    v = [[np.inf, 1], [np.nan, 1], [1, 1], [FLOAT_MAX, 0]]
    got = product(np.zeros((4, 3)), v, [[1, 1], [0, 1], [-1, np.inf]])
    want = [[np.inf, np.nan, np.nan], [np.nan] * 3, [2, 1, np.inf], [np.inf, np.nan, np.nan]]
    assert_same_bits(got, single(want))


# ---- Networks ------------------------------------------------------------------------------------

INPUT, HIDDEN, PROJ, STEPS = 5, 6, 4, 7
LENGTHS = np.array([4, 0, STEPS, 1])
ROWS = len(LENGTHS)
DIRECTIONS = [{}, {"reverse": True}, {"bidirectional": True}]
NETWORKS = [
    (cell, {"num_layers": 2, **options, **direction})
    for cell, options in [
        ("LSTM", {}),
        ("LSTM", {"bias": False, "peephole": True}),
        ("LSTM", {"proj_size": PROJ, "peephole": True}),
        ("GRU", {}),
        ("GRU", {"update_gate": "write", "reset_after": False}),
        ("MGU", {}),
    ]
    for direction in DIRECTIONS
]


def describe(value: Any) -> str | None:
    if isinstance(value, dict):
        return "-".join(f"{key}={item}" for key, item in value.items()) or "none"
    return None


def logistic(a: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-a))


class Problem:
    """A network with random parameters, input, initial state, resets and dropout.

    Some |h| of the initial state exceed 1. x and the dropout are NaN at padded steps.
    """

    def __init__(self, cell: str, options: dict[str, Any]) -> None:
        rng = np.random.default_rng(0)
        self.network = network = getattr(reference, cell)(INPUT, HIDDEN, **options)
        shapes = network.parameter_shapes()
        self.params = {name: rng.uniform(-1, 1, shape) for name, shape in shapes.items()}
        padded = np.arange(STEPS)[:, None] >= LENGTHS
        self.x = rng.normal(size=(STEPS, ROWS, INPUT))
        self.x[padded] = np.nan
        layers, directions = network.num_layers, network.num_directions
        self.h = rng.normal(size=(layers * directions, ROWS, network.state_size))
        self.c = rng.normal(size=(layers * directions, ROWS, HIDDEN))
        self.reset = rng.random((STEPS, ROWS)) < 0.3
        width = directions * network.state_size
        self.dropout_scale = rng.choice([0, 1.25], (layers - 1, STEPS, ROWS, width))
        self.dropout_scale[:, padded] = np.nan

    def forward(
        self, x: np.ndarray | None = None, params: dict[str, np.ndarray] | None = None
    ) -> tuple[np.ndarray, Any, Any]:
        return self.network.forward(
            self.params if params is None else params,
            self.x if x is None else x,
            (self.h, self.c) if self.network.cell == "LSTM" else self.h,
            lengths=LENGTHS,
            reset=self.reset,
            dropout_scale=self.dropout_scale,
        )

    def previous(self, values: np.ndarray, initial: np.ndarray, reverse: bool) -> np.ndarray:
        """(T, N, ...): the values at the step before, the initial ones, or zeros after a reset."""
        result = np.zeros_like(values)
        for b, length in enumerate(LENGTHS):
            order = range(length)[::-1] if reverse else range(length)
            before = initial[b]
            for t in order:
                boundary = t + 1 if reverse else t  # the one between this step and the one before
                reset = boundary < length and self.reset[boundary, b]
                result[t, b] = 0 if reset else before
                before = values[t, b]
        return result


def expected(p: Problem, tape: Any, index: int, precision: str) -> dict[str, np.ndarray]:
    """All steps of one direction, from its input and the state that the tape has before each step.

    In r*h and f*h, r and f are the tape's, so that these products round in the same way.
    """
    network = p.network
    layer, second = divmod(index, network.num_directions)
    reverse = network.reverse or second == 1
    suffix = f"_l{layer}" + ("_reverse" if second else "")

    def saved(layer: int, name: str, second: int = second) -> np.ndarray:
        return tape.saved(layer, bool(second), name)

    def product(name: str, operand: np.ndarray, least: float = 0.0) -> np.ndarray:
        """The operand may be NaN at padded steps."""
        weight = numpy_operand(p.params[name + suffix], precision)
        return numpy_operand(operand, precision, least) @ weight.T

    x = p.x
    if layer > 0:
        directions = range(network.num_directions)
        x = np.concatenate([saved(layer - 1, "h", d) for d in directions], axis=-1)
        x = x * p.dropout_scale[layer - 1]
    least = 0.0 if network.proj_size else 1.0
    h_prev = p.previous(saved(layer, "h"), p.h[index], reverse)
    a_x, a_h = product("weight_ih", x), product("weight_hh", h_prev, least)
    if network.bias:
        a_x = a_x + p.params["bias_ih" + suffix]
        a_h = a_h + p.params["bias_hh" + suffix]
    gates = network.gates
    a_x, a_h = np.split(a_x, gates, axis=-1), np.split(a_h, gates, axis=-1)
    if network.cell == "LSTM":
        c_prev = p.previous(saved(layer, "c"), p.c[index], reverse)
        w_i, w_f, w_o = np.split(np.zeros(3 * HIDDEN), 3)
        if network.peephole:
            w_i, w_f, w_o = np.split(p.params["weight_peephole" + suffix], 3)
        i = logistic(a_x[0] + a_h[0] + w_i * c_prev)
        f = logistic(a_x[1] + a_h[1] + w_f * c_prev)
        g = np.tanh(a_x[2] + a_h[2])
        c = f * c_prev + i * g
        o = logistic(a_x[3] + a_h[3] + w_o * c)
        h = o * np.tanh(c)
        if network.proj_size:
            h = product("weight_hr", h)
        return {"i": i, "f": f, "g": g, "o": o, "c": c, "h": h}
    rows = slice((gates - 1) * HIDDEN, None)  # of the candidate

    def candidate_product(factor: str) -> np.ndarray:
        operand = numpy_operand(saved(layer, factor) * h_prev, precision, least)
        result = operand @ numpy_operand(p.params["weight_hh" + suffix][rows], precision).T
        return result + p.params["bias_hh" + suffix][rows]

    if network.cell == "MGU":
        f = logistic(a_x[0] + a_h[0])
        n = np.tanh(a_x[1] + candidate_product("f"))
        return {"f": f, "n": n, "h": (1 - f) * h_prev + f * n}
    r, z = logistic(a_x[0] + a_h[0]), logistic(a_x[1] + a_h[1])
    n = np.tanh(a_x[2] + (r * a_h[2] if network.reset_after else candidate_product("r")))
    old = z if network.update_gate == "carry" else 1 - z
    return {"r": r, "z": z, "n": n, "h": old * h_prev + (1 - old) * n}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("cell", "options"), NETWORKS, ids=describe)
def test_every_step_is_float64_of_rounded_operands(
    cell: str, options: dict[str, Any], precision: str
) -> None:
    """Two layers, with lengths, resets, an initial state and dropout."""
    p = Problem(cell, {**options, "precision": precision})
    y, _, tape = p.forward()
    valid = np.arange(STEPS)[:, None] < LENGTHS
    directions = p.network.num_directions
    for index in range(2 * directions):
        layer, second = divmod(index, directions)
        for name, want in expected(p, tape, index, precision).items():
            got = tape.saved(layer, second == 1, name)
            assert np.isfinite(got).all()
            # Rounding errors of sums of about 20 terms, each at most 4.
            np.testing.assert_allclose(got[valid], want[valid], rtol=0, atol=64 * EPS, err_msg=name)
            assert not got[~valid].any()
    last = [tape.saved(1, second == 1, "h") for second in range(directions)]
    np.testing.assert_array_equal(y, np.concatenate(last, axis=-1))


@pytest.mark.parametrize(
    ("precision", "atol"), [("bfloat16", 2.0**-5), ("bfloat16-dot", 2.0**-5), ("int8", 2.0**-4)]
)
@pytest.mark.parametrize(("cell", "options"), NETWORKS, ids=describe)
def test_a_precision_changes_little(
    cell: str, options: dict[str, Any], precision: str, atol: float
) -> None:
    """An estimate: the error of a wrong operand or scale is far larger."""
    exact, _, _ = Problem(cell, options).forward()
    rounded, _, _ = Problem(cell, {**options, "precision": precision}).forward()
    error = np.abs(rounded - exact).max()
    assert 2.0**-12 < error < atol


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("cell", "options"), NETWORKS[::3], ids=describe)
def test_rounded_matrices_in_float32_are_the_same_network(
    cell: str, options: dict[str, Any], precision: str
) -> None:
    """The matrices of a layer with a precision are float32 values that are already rounded."""
    p = Problem(cell, {**options, "precision": precision})
    params = dict(p.params)
    for name, matrix in params.items():
        if matrix.ndim == 2:
            params[name] = single(numpy_operand(matrix, precision))
            assert (params[name] != matrix).any()
    y, _, _ = p.forward()
    again, _, _ = p.forward(params=params)
    np.testing.assert_array_equal(again, y)


BOUNDED = [
    ("LSTM", {}, True),
    ("LSTM", {"activation": "relu"}, False),  # also the output activation
    ("LSTM", {"activation": "relu", "output_activation": "tanh"}, True),
    ("LSTM", {"output_activation": "relu"}, False),
    ("LSTM", {"output_activation": "sigmoid"}, True),
    ("LSTM", {"recurrent_activation": "hard_sigmoid"}, True),
    ("LSTM", {"recurrent_activation": "softsign"}, True),  # |o| <= 1 is enough
    ("LSTM", {"recurrent_activation": "softplus"}, False),
    ("LSTM", {"activation": ("scaled_tanh", -1.0, 2.0)}, True),
    ("LSTM", {"activation": ("scaled_tanh", 1.01)}, False),
    ("LSTM", {"activation": ("scaled_tanh", -1.01)}, False),
    ("LSTM", {"proj_size": PROJ}, False),
    *[
        (cell, {**options, **activations}, bounded)
        for cell, options in [("GRU", {}), ("GRU", {"reset_after": False}), ("MGU", {})]
        for activations, bounded in [
            ({}, True),
            ({"activation": "softsign"}, True),
            ({"activation": "hard_sigmoid", "recurrent_activation": ("hard_sigmoid", 0.3)}, True),
            ({"activation": ("scaled_tanh", 1.0, 3.0)}, True),
            ({"activation": ("scaled_tanh", 1.5)}, False),
            ({"activation": "elu"}, False),
            ({"activation": ("affine", 0.0, 0.5)}, False),  # by its name
            ({"recurrent_activation": "tanh"}, False),  # below 0, so h is no weighted mean
            ({"recurrent_activation": "relu"}, False),
        ]
    ],
]


@pytest.mark.parametrize(("cell", "options", "bounded"), BOUNDED, ids=describe)
def test_a_bounded_h_has_a_fixed_scale(cell: str, options: dict[str, Any], bounded: bool) -> None:
    """With the fixed scale, an h below 1/254 is rounded to 0, and so are r*h and f*h."""
    network = getattr(reference, cell)(1, HIDDEN, precision="int8", **options)
    rng = np.random.default_rng(5)
    shapes = network.parameter_shapes()
    params = {name: rng.uniform(0.1, 0.3, shape) for name, shape in shapes.items()}
    gate = {"LSTM": "i", "GRU": "z", "MGU": "f"}[cell]

    def saved(h: float, name: str) -> np.ndarray:
        state: Any = np.full((1, 1, network.state_size), h)
        state = (state, None) if cell == "LSTM" else state
        return network.forward(params, [[[0.0]]], state)[2].saved(0, False, name)

    for name in [gate] if cell == "LSTM" or "affine" in str(options) else [gate, "n"]:
        assert (saved(0.003, name) == saved(0, name)).all() == bounded, name
        assert (saved(0.05, name) != saved(0, name)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("cell", "options"), NETWORKS, ids=describe)
def test_a_row_that_is_not_finite_stays_alone(
    cell: str, options: dict[str, Any], precision: str, bad: float
) -> None:
    """In int8 one such element of x makes all of the row NaN. As a float32, 1e300 is infinite."""
    p = Problem(cell, {**options, "precision": precision})
    x = p.x.copy()
    x[3, 2, 0] = bad
    (y, _, _), (bad_y, _, tape) = p.forward(), p.forward(x)
    others = [0, 1, 3]
    np.testing.assert_array_equal(bad_y[:, others], y[:, others])
    if precision == "int8":
        assert np.isnan(tape.saved(0, False, "h")[3, 2]).all()
        assert np.isnan(bad_y[3, 2]).all()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_reset_ends_what_is_not_finite(precision: str) -> None:
    for cell in ("LSTM", "GRU", "MGU"):
        p = Problem(cell, {"precision": precision})
        p.reset[:, 2] = np.arange(STEPS) == 4
        x = p.x.copy()
        x[2, 2] = np.nan
        (y, _, _), (bad_y, _, _) = p.forward(), p.forward(x)
        assert np.isnan(bad_y[2:4, 2]).all()
        np.testing.assert_array_equal(bad_y[4:, 2], y[4:, 2])


def test_nothing_given_is_written_to() -> None:
    p = Problem("LSTM", {"proj_size": PROJ, "num_layers": 2, "precision": "int8"})
    for array in (p.x, p.h, p.c, p.dropout_scale, *p.params.values()):
        array.flags.writeable = False
    y, _, _ = p.forward()
    again, _, _ = p.forward()
    np.testing.assert_array_equal(again, y)


# ---- Arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["float32", "float64", "INT8", "", 8])
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "MGU"])
def test_wrong_precisions(cell: str, given: Any) -> None:
    wanted = f"precision: got {given!r}, wanted None or one of ('bfloat16', 'bfloat16-dot', 'int8')"
    with pytest.raises(ValueError, match=re.escape(wanted)):
        getattr(reference, cell)(1, 1, precision=given)


def test_int8_has_no_backward() -> None:
    network = reference.GRU(1, 1, precision="int8")
    params = {name: np.zeros(shape) for name, shape in network.parameter_shapes().items()}
    y, _, tape = network.forward(params, np.zeros((1, 1, 1)))
    with pytest.raises(ValueError, match="precision: got 'int8', wanted None"):
        network.backward(tape, y)
    with pytest.raises(ValueError, match="tape"):
        reference.GRU(1, 1).backward(tape, y)


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("int8", "int8"),
        ("bfloat16", "bfloat16"),
        ("bfloat16-dot", "bfloat16-dot"),
        ("float32", None),
        ("float64", None),
        (None, None),
    ],
)
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "MGU"])
def test_from_layer_reads_the_precision(cell: str, given: Any, read: Any) -> None:
    layer = getattr(reference, cell)(2, 3)
    layer.precision = given
    assert reference.from_layer(layer).precision == read
    del layer.precision
    assert reference.from_layer(layer).precision is None


V, Q, S = np.zeros((2, 3)), np.zeros((2, 3), np.int8), np.ones(2)


@pytest.mark.parametrize(
    ("function", "arguments", "error", "match"),
    [
        ("quantize", (np.zeros(3),), ValueError, "v: got shape"),
        ("quantize", (np.zeros((1, 2), bool),), TypeError, "v: got dtype bool"),
        ("quantize", (V, -1.0), ValueError, "least: got -1.0, wanted a number >= 0"),
        ("quantize", (V, np.nan), ValueError, "least: got nan"),
        ("quantize", (V, "1"), TypeError, "least: got '1'"),
        ("round_to_bfloat16", (np.zeros(3, complex),), TypeError, "v: got dtype complex128"),
        ("int8_product", (np.zeros(2), Q, S, Q, S), ValueError, "start: got shape"),
        (
            "int8_product",
            (np.zeros((2, 2)), V, S, Q, S),
            TypeError,
            "^q: got dtype float64, wanted",
        ),
        ("int8_product", (np.zeros((2, 2)), Q, S, V, S), TypeError, "weight_q: got dtype"),
        ("int8_product", (np.zeros((3, 2)), Q, S, Q, S), ValueError, "^q: got shape"),
        ("int8_product", (np.zeros((2, 3)), Q, S, Q, S), ValueError, "weight_q: got shape"),
        ("int8_product", (np.zeros((2, 2)), Q, S[:1], Q, S), ValueError, "^scale: got shape"),
        ("int8_product", (np.zeros((2, 2)), Q, S, Q, S[:1]), ValueError, "weight_scale: got shape"),
        ("bfloat16_dot_product", (np.zeros(2), V, V), ValueError, "start: got shape"),
        ("bfloat16_dot_product", (np.zeros((2, 2)), V, V > 0), TypeError, "weight: got dtype bool"),
        ("bfloat16_product", (np.zeros(2), V, V), ValueError, "start: got shape"),
        ("bfloat16_product", (np.zeros((3, 2)), V, V), ValueError, "v: got shape"),
        ("bfloat16_product", (np.zeros((2, 2)), V, V[:, 1:]), ValueError, "weight: got shape"),
        ("bfloat16_product", (np.zeros((2, 2)), V, V > 0), TypeError, "weight: got dtype bool"),
    ],
)
def test_wrong_arguments(function: str, arguments: tuple, error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        getattr(reference, function)(*arguments)
