# The reference: LSTM, GRU and MGU in float64, naive loops straight from the equations.
# No code from csrc/.
# cython: language_level=3, boundscheck=True, wraparound=False, cdivision=True
# cython: freethreading_compatible=True
"""What Tidegate computes, written for comparison with the equations line by line.

Every feature, forward and backward, in float64, one row and one step at a time; not optimised, no
threads, no matrix library. The tests and ``tidegate selftest`` check the C++ core against it. The
low precisions, "bfloat16", "bfloat16-dot" and, for inference alone, "int8", are specified in the
section "Low precision".

Notation throughout: ``t`` a step, ``b`` a row of the batch, ``j`` a hidden unit, ``k`` a summation
index. T steps, N rows, I the input size, H ``hidden_size``, S the size of h (``proj_size`` if there
is a projection, else H), L layers, D directions. ``dv`` is the derivative of the loss with respect
to ``v``; the derivative of each function follows directly below it.
"""

import math
import operator
from numbers import Real
from typing import NamedTuple

import numpy as np

from libc.float cimport FLT_MIN
from libc.math cimport (
    INFINITY, NAN, copysign, copysignf, cosh, exp, expm1, fabs, fabsf, fmaf, isfinite, isinf, isnan,
    log1p, rintf, tanh
)
from libc.stdint cimport uint32_t
from libc.string cimport memcpy

__all__ = [
    "GRU",
    "LSTM",
    "MGU",
    "Grads",
    "Tape",
    "activation_parameters",
    "bfloat16_dot_product",
    "bfloat16_product",
    "from_layer",
    "h_is_bounded",
    "int8_product",
    "quantize",
    "round_to_bfloat16",
]


# ---- Activations ---------------------------------------------------------------------------------

cdef enum Kind:
    SIGMOID, TANH, RELU, HARD_SIGMOID, AFFINE, LEAKY_RELU, THRESHOLDED_RELU, SCALED_TANH, ELU
    SOFTSIGN, SOFTPLUS


cdef struct Activation:
    Kind kind
    double alpha, beta


# For each activation: the kind, and the usual values of its parameters (alpha, or alpha and beta).
_KINDS = {
    "sigmoid": (SIGMOID, ()),
    "tanh": (TANH, ()),
    "relu": (RELU, ()),
    "hard_sigmoid": (HARD_SIGMOID, (0.2, 0.5)),
    "affine": (AFFINE, (1.0, 0.0)),
    "leaky_relu": (LEAKY_RELU, (0.01,)),
    "thresholded_relu": (THRESHOLDED_RELU, (1.0,)),
    "scaled_tanh": (SCALED_TANH, (1.0, 1.0)),
    "elu": (ELU, (1.0,)),
    "softsign": (SOFTSIGN, ()),
    "softplus": (SOFTPLUS, ()),
}


def activation_parameters(activation):
    """The name, alpha and beta of a network's activation; 0 for a parameter that it does not have.

    Args:
        activation: a network's `activation`, `recurrent_activation`, or `output_activation` unless
            it is None.
    """
    name, *own = (activation,) if isinstance(activation, str) else activation
    _, usual = _KINDS[name]
    parameters = (*own, *usual[len(own):], 0.0, 0.0)
    return name, parameters[0], parameters[1]


cdef Activation as_activation(given):
    cdef Activation f
    name, f.alpha, f.beta = activation_parameters(given)
    f.kind = _KINDS[name][0]
    return f


cdef double sigmoid(double x) noexcept:
    """1/(1 + exp(-x)), in the form whose exp does not overflow: accurate in both tails."""
    if x >= 0:
        return 1 / (1 + exp(-x))
    return exp(x) / (1 + exp(x))


cdef double activate(Activation f, double x) noexcept:
    """f(x), by ONNX's formulas; the limit at infinity. NaN passes through all of them."""
    cdef double line
    if f.kind == SIGMOID:
        return sigmoid(x)
    if f.kind == TANH:
        return tanh(x)
    if f.kind == RELU:
        return 0 if x < 0 else x
    if f.kind == HARD_SIGMOID:  # max(0, min(1, alpha x + beta))
        line = f.alpha * x + f.beta
        return 0 if line < 0 else 1 if line > 1 else line
    if f.kind == AFFINE:
        return f.alpha * x + f.beta
    if f.kind == LEAKY_RELU:
        return f.alpha * x if x < 0 else x
    if f.kind == THRESHOLDED_RELU:
        return 0 if x <= f.alpha else x
    if f.kind == SCALED_TANH:
        return f.alpha * tanh(f.beta * x)
    if f.kind == ELU:  # exp(x) - 1
        return f.alpha * expm1(x) if x < 0 else x
    if f.kind == SOFTSIGN:
        return copysign(1, x) if isinf(x) else x / (1 + fabs(x))
    # SOFTPLUS: log(1 + exp(x)) = log(exp(x) * (exp(-x) + 1)); whichever exp does not overflow.
    return (x if x > 0 else 0) + log1p(exp(-fabs(x)))


cdef double slope(Activation f, double x) noexcept:
    """f'(x); at a kink the left-hand slope, as in PyTorch, but always 0 for hard_sigmoid."""
    cdef double line
    if f.kind == SIGMOID:  # s (1 - s), and 1 - sigmoid(x) = sigmoid(-x)
        return sigmoid(x) * sigmoid(-x)
    if f.kind == TANH:  # 1 - tanh(x)^2
        return 1 / (cosh(x) * cosh(x))
    if f.kind == RELU:
        return 0 if x <= 0 else 1
    if f.kind == HARD_SIGMOID:
        line = f.alpha * x + f.beta
        return f.alpha if 0 < line < 1 else 0
    if f.kind == AFFINE:
        return f.alpha
    if f.kind == LEAKY_RELU:
        return f.alpha if x <= 0 else 1
    if f.kind == THRESHOLDED_RELU:
        return 0 if x <= f.alpha else 1
    if f.kind == SCALED_TANH:
        return f.alpha * f.beta / (cosh(f.beta * x) * cosh(f.beta * x))
    if f.kind == ELU:
        return f.alpha * exp(x) if x <= 0 else 1
    if f.kind == SOFTSIGN:
        return 1 / ((1 + fabs(x)) * (1 + fabs(x)))
    return sigmoid(x)  # SOFTPLUS


cdef double clipped(Activation f, double clip, double a) noexcept:
    """f(a), a clamped to [-clip, clip] (ONNX's clip). NaN passes through."""
    return activate(f, -clip if a < -clip else clip if a > clip else a)


cdef double complement(Activation f, double clip, double a) noexcept:
    """1 - clipped(f, clip, a). The subtraction would cancel where f is near 1, so it is avoided for
    the functions with 1 - f(a) = f(-a): sigmoid, and hard_sigmoid with beta = 1/2.
    """
    if f.kind == SIGMOID or (f.kind == HARD_SIGMOID and f.beta == 0.5):
        return clipped(f, clip, -a)
    return 1 - clipped(f, clip, a)


cdef double clipped_backward(Activation f, double clip, double a, double dy) noexcept:
    """da, where y = clipped(f, clip, a); at the ends of the range the slope inside, as in PyTorch."""
    return 0 if fabs(a) > clip else dy * slope(f, a)


# ---- Low precision -------------------------------------------------------------------------------
#
# With a precision, the operands of matrix products are rounded: the matrices weight_ih, weight_hh
# and weight_hr, and the vectors that they multiply. These are x (above the first layer, the output
# of the layer below), h, or r*h or f*h in its place, and with a projection m = o*tanh(c'). Nothing
# else is rounded: not biases, peepholes, sums, activations, c, nor h where r*h, f*h or the new h is
# computed from it. Each operand is first rounded to float32, then:
#
#   bfloat16, bfloat16-dot
#             each value to bfloat16, as `round_to_bfloat16` does it;
#   int8      each vector to q*scale, q integers in -127..127, as `quantize` does it. The vectors
#             are the rows of a matrix, and the operand at one [t, b]. `least` is 1 for h, r*h and
#             f*h if |h| <= 1 (`h_is_bounded`), so that their scale is normally 1/127. It is 0 for
#             all other operands. An operand with an element that is not finite is NaN throughout.
#
# In both bfloat16's the products of the backward pass round their operands too: the same matrices
# and vectors, and the gradients by pre-activations and by a projection's result. Gradients of
# biases and peepholes are sums of gradients that are not rounded.
#
# A network in this file multiplies and sums the rounded numbers in float64. A kernel computes in
# float32: a pre-activation starts at bias_ih + bias_hh, the product with x is added, then that with
# h. In a GRU with reset_after the two parts of the candidate, W_n x + b_in and U_n h + b_hn, each
# start at their own bias. A projection starts at 0. `int8_product`, `bfloat16_product` and
# `bfloat16_dot_product` define this addition bit by bit.

_BFLOAT16 = ("bfloat16", "bfloat16-dot")
_PRECISIONS = (*_BFLOAT16, "int8")

cdef float Q_MAX = 127
cdef float TINY = 2.0 ** -100


cdef float quantization_range(double[::1] v, float least) noexcept:
    """m: the larger of max |v_k| and `least`, v rounded to float32; NaN if a v_k is not finite.

    It is 127 instead if it is below 2^-100: 127/m does not overflow, and zeros have the scale 1.
    """
    cdef Py_ssize_t k
    cdef float m = least
    for k in range(v.shape[0]):
        if not isfinite(<float>v[k]):
            return NAN
        m = max(m, fabsf(<float>v[k]))
    return Q_MAX if m < TINY else m


cdef signed char quantized(float value, float m) noexcept:
    """q: the integer nearest to value * (127/m), ties to even; 0 if m is NaN."""
    cdef float inverse = Q_MAX / m
    cdef float multiple = value * inverse
    return 0 if isnan(m) else <signed char>rintf(multiple)


cdef float quantization_scale(float m) noexcept:
    """scale: the quantised value is q*scale."""
    return m / Q_MAX


def quantize(v, least=0.0):
    """Quantises each row of v to int8, in float32 arithmetic without fused multiply-adds.

        m     = max(max_k |v_k|, least), but 127 if that is below 2^-100
        q_k   = the integer nearest to v_k * (127/m), ties to even
        scale = m/127

    The quotient 127/m and its product with v_k are rounded to float32. If an element is NaN or
    infinite, the row's scale is NaN and its q are 0.

    Args:
        v: (N, K), converted to float32.
        least: a number >= 0, converted to float32.

    Returns:
        q (N, K), int8 in -127..127, and scale (N,), float32.

    Raises:
        ValueError: v does not have two axes, or `least` is negative or not finite.
        TypeError: v does not hold real numbers, or `least` is not a number.
    """
    cdef double[:, ::1] rows = _array("v", v, (None, None))
    if _check_number("least", least) < 0:
        raise ValueError(f"least: got {least!r}, wanted a number >= 0")
    cdef signed char[:, ::1] q = np.zeros((rows.shape[0], rows.shape[1]), np.int8)
    cdef float[::1] scale = np.zeros(rows.shape[0], np.float32)
    cdef Py_ssize_t b, k
    cdef float m
    for b in range(rows.shape[0]):
        m = quantization_range(rows[b], least)
        for k in range(rows.shape[1]):
            q[b, k] = quantized(<float>rows[b, k], m)
        scale[b] = quantization_scale(m)
    return np.asarray(q), np.asarray(scale)


cdef float to_bfloat16(float value) noexcept:
    """The nearest float32 whose lower 16 bits are zero, ties to even; for a NaN a quiet NaN."""
    cdef uint32_t bits
    memcpy(&bits, &value, sizeof(bits))
    if isnan(value):
        bits |= 0x00400000
    else:
        bits += 0x7fff + (bits >> 16 & 1)  # carries into the upper half if that is to be rounded up
    bits &= 0xffff0000
    memcpy(&value, &bits, sizeof(bits))
    return value


def round_to_bfloat16(v):
    """The values of v rounded to bfloat16, to nearest, ties to even.

    What rounds beyond the largest bfloat16 becomes infinite. Denormal numbers are rounded like all
    others, to multiples of 2^-133. NaN stays NaN and is quiet.

    Args:
        v: an array of any shape, converted to float32.

    Returns:
        A float32 array of the same shape.

    Raises:
        TypeError: v does not hold real numbers.
    """
    rounded = _array("v", v, np.shape(v), np.float32)
    cdef float[::1] flat = rounded.reshape(-1)
    cdef Py_ssize_t k
    for k in range(flat.shape[0]):
        flat[k] = to_bfloat16(flat[k])
    return rounded


cdef void round_operand(str precision, double[::1] v, float least):
    """Rounds an operand in place, in int8 to q*scale; without a precision it is left as it is."""
    cdef Py_ssize_t k
    cdef float m
    if precision in _BFLOAT16:
        for k in range(v.shape[0]):
            v[k] = to_bfloat16(<float>v[k])
    elif precision == "int8":
        m = quantization_range(v, least)
        for k in range(v.shape[0]):
            v[k] = quantized(<float>v[k], m) * <double>quantization_scale(m)


cdef double[:, ::1] rounded_matrix(network, double[:, ::1] matrix):
    """A rounded copy, by rows; the matrix itself without a precision, or if it is rounded already."""
    cdef str precision = None if network.weights_are_rounded else network.precision
    cdef double[:, ::1] rounded = matrix if precision is None else matrix.copy()
    cdef Py_ssize_t row
    for row in range(rounded.shape[0]):
        round_operand(precision, rounded[row], 0)
    return rounded


cdef float flushed(float value) noexcept:
    """Zero of the same sign in place of a denormal number."""
    return copysignf(0, value) if fabsf(value) < FLT_MIN else value


def int8_product(start, q, scale, weight_q, weight_scale):
    """start + weight v of quantised operands, in the kernels' float32 arithmetic.

        acc    = sum_k weight_q[j, k] * q[b, k], exactly
        result = start[b, j] + (float32(acc) * weight_scale[j]) * scale[b]

    Each operation is rounded to float32; denormal inputs and results count as zeros of their sign.

    Args:
        start: (N, M), converted to float32.
        q: (N, K), int8; scale: (N,), converted to float32; both as from `quantize`.
        weight_q: (M, K), int8; weight_scale: (M,), converted to float32.

    Returns:
        (N, M), float32.

    Raises:
        ValueError: a shape is wrong.
        TypeError: q or weight_q is not int8, or another array does not hold real numbers.
    """
    cdef float[:, ::1] result = _array("start", start, (None, None), np.float32)
    cdef Py_ssize_t b, j, k, N = result.shape[0], M = result.shape[1]
    cdef signed char[:, ::1] v = _int8_array("q", q, (N, None))
    cdef signed char[:, ::1] w = _int8_array("weight_q", weight_q, (M, v.shape[1]))
    cdef float[::1] scale_v = _array("scale", scale, (N,), np.float32)
    cdef float[::1] scale_w = _array("weight_scale", weight_scale, (M,), np.float32)
    cdef long long acc
    cdef float product
    for b in range(N):
        for j in range(M):
            acc = 0
            for k in range(v.shape[1]):
                acc += w[j, k] * v[b, k]
            product = flushed(<float>acc * flushed(scale_w[j]))
            product = flushed(product * flushed(scale_v[b]))
            result[b, j] = flushed(flushed(result[b, j]) + product)
    return np.asarray(result)


cdef float multiply_add(float v, float w, float total) noexcept:
    """v*w + total, rounded once."""
    return flushed(fmaf(flushed(v), flushed(w), total))


def _bfloat16_operands(start, v, weight):
    """The checked arguments of a product: start as float32, v and weight rounded to bfloat16."""
    result = _array("start", start, (None, None), np.float32)
    operand = round_to_bfloat16(_array("v", v, (result.shape[0], None), np.float32))
    size = (result.shape[1], operand.shape[1])
    return result, operand, round_to_bfloat16(_array("weight", weight, size, np.float32))


def bfloat16_product(start, v, weight):
    """start + weight v of operands rounded to bfloat16, in the kernels' float32 arithmetic.

    The accumulator a begins at start[b, j]. For each block of 32 consecutive k (the last may be
    shorter):

        even = fma(v_k, w_k, even), from +0, over the block's k = 0, 2, ..., ascending
        odd  = fma(v_k, w_k, odd), from +0, over the block's k = 1, 3, ..., ascending
        a    = a + (even + odd)

    In a shorter block, 0 is added to even and to odd before their sum, which turns -0 into +0. Each
    operation is rounded to float32, fma once; denormal inputs (after the rounding to bfloat16) and
    results count as zeros of their sign. A result that rounds up to the least normal number only in
    the precision of denormal numbers is that number here; a processor may flush it to zero.

    Args:
        start: (N, M), converted to float32.
        v: (N, K), converted to float32, then rounded to bfloat16.
        weight: (M, K), converted to float32, then rounded to bfloat16.

    Returns:
        (N, M), float32.

    Raises:
        ValueError: a shape is wrong.
        TypeError: an array does not hold real numbers.
    """
    cdef float[:, ::1] result, operand, w
    result, operand, w = _bfloat16_operands(start, v, weight)
    cdef Py_ssize_t b, j, k, block, end
    cdef Py_ssize_t N = result.shape[0], M = result.shape[1], K = operand.shape[1]
    cdef float a, even, odd
    for b in range(N):
        for j in range(M):
            a = flushed(result[b, j])
            for block in range(0, K, 32):
                end = min(block + 32, K)
                even = odd = 0
                for k in range(block, end, 2):
                    even = multiply_add(operand[b, k], w[j, k], even)
                for k in range(block + 1, end, 2):
                    odd = multiply_add(operand[b, k], w[j, k], odd)
                if end < block + 32:
                    even += 0
                    odd += 0
                a = flushed(a + flushed(even + odd))
            result[b, j] = a
    return np.asarray(result)


def bfloat16_dot_product(start, v, weight):
    """start + weight v of operands rounded to bfloat16, in the order of dot products of pairs.

    As `bfloat16_product`, but the accumulator a, which begins at start[b, j], receives each product
    itself, for k = 0, 2, ..., ascending:

        a = fma(v_{k+1}, w_{k+1}, a), or fma(0, 0, a) beyond the last element
        a = fma(v_k, w_k, a)

    Args, returns and raises: as `bfloat16_product`.
    """
    cdef float[:, ::1] result, operand, w
    result, operand, w = _bfloat16_operands(start, v, weight)
    cdef Py_ssize_t b, j, k, N = result.shape[0], M = result.shape[1], K = operand.shape[1]
    cdef float a
    for b in range(N):
        for j in range(M):
            a = flushed(result[b, j])
            for k in range(0, K, 2):
                if k + 1 < K:
                    a = multiply_add(operand[b, k + 1], w[j, k + 1], a)
                else:
                    a = multiply_add(0, 0, a)
                a = multiply_add(operand[b, k], w[j, k], a)
            result[b, j] = a
    return np.asarray(result)


cdef bint is_gate(Activation f) noexcept:
    """Whether 0 <= f(x) <= 1 for all x."""
    return f.kind == SIGMOID or f.kind == HARD_SIGMOID


cdef bint is_bounded(Activation f) noexcept:
    """Whether |f(x)| <= 1 for all x."""
    return (is_gate(f) or f.kind == TANH or f.kind == SOFTSIGN
            or (f.kind == SCALED_TANH and fabs(f.alpha) <= 1))


def h_is_bounded(network):
    """Whether |h| <= 1 at every step of a network if the initial h is.

    h is the product of bounded functions, or a weighted mean of the previous h and a bounded
    candidate. A projected h has no bound.
    """
    gate = as_activation(network.recurrent_activation)
    if network.cell == "LSTM":
        output = as_activation(network.output_activation or network.activation)
        return not network.proj_size and is_bounded(gate) and is_bounded(output)
    return is_gate(gate) and is_bounded(as_activation(network.activation))


# ---- Storage -------------------------------------------------------------------------------------

cdef class Direction:
    """The parameters of one direction of one layer. A second instance, ``dp``, holds derivatives.

    Gates are stacked along the first axis: i, f, g, o for an LSTM, r, z, n for a GRU, f, n for an MGU,
    so that row ``gate*H + j`` belongs to unit j. Without ``bias`` the biases are hidden zeros.
    With a precision, the matrices are rounded copies, except for gradients (``rounds`` false).
    """

    cdef str cell, precision
    cdef bint peephole, projection, input_forget, reset_after, write
    cdef Activation recurrent_activation, activation, output_activation
    cdef double clip  # infinite if there is none
    cdef float h_least  # `least` of h, r*h and f*h in int8
    cdef double[:, ::1] weight_ih  # (G*H, I), above the first layer (G*H, D*S)
    cdef double[:, ::1] weight_hh  # (G*H, S)
    cdef double[::1] bias_ih  # (G*H,)
    cdef double[::1] bias_hh  # (G*H,)
    cdef double[:, ::1] weight_hr  # (S, H), with a projection
    cdef double[::1] weight_peephole  # (3*H,): i, f, o; with peepholes

    def __init__(self, network, arrays, suffix, rounds=True):
        def matrix(name):
            given = arrays[name + suffix]
            return rounded_matrix(network, given) if rounds else given

        self.cell = network.cell
        self.precision = network.precision
        self.peephole = network.peephole
        self.projection = network.proj_size > 0
        self.reset_after = network.reset_after
        self.write = network.update_gate == "write"
        self.input_forget = network.input_forget
        self.recurrent_activation = as_activation(network.recurrent_activation)
        self.activation = as_activation(network.activation)
        self.output_activation = as_activation(network.output_activation or network.activation)
        self.clip = INFINITY if network.clip is None else network.clip
        self.h_least = 1 if h_is_bounded(network) else 0
        self.weight_ih = matrix("weight_ih")
        self.weight_hh = matrix("weight_hh")
        gates = self.weight_ih.shape[0]
        self.bias_ih = arrays["bias_ih" + suffix] if network.bias else np.zeros(gates)
        self.bias_hh = arrays["bias_hh" + suffix] if network.bias else np.zeros(gates)
        if self.projection:
            self.weight_hr = matrix("weight_hr")
        if self.peephole:
            self.weight_peephole = arrays["weight_peephole" + suffix]


cdef class Steps:
    """What one direction of one layer computes at [t, b].

    ``h_prev`` and ``c_prev`` are the state from which the step starts: that of the previous step,
    the initial state, or zero after a reset. Padded steps are never written and stay zero. Without
    a cell state c is of size 0. A second instance, ``ds``, holds the derivatives of all quantities
    that are used more than once; the other derivatives are local variables.

    With a precision, ``x``, ``h_operand``, ``rh``, ``fh`` and, before a projection, ``m`` are
    rounded: only products read them.
    """

    cdef double[:, :, ::1] x  # (T, N, I), shared by a layer's directions
    cdef double[:, :, ::1] h_prev, h  # (T, N, S)
    cdef double[:, :, ::1] h_operand  # h_prev as products read it; h_prev itself if not rounded
    cdef double[:, :, ::1] c_prev, c  # (T, N, H)
    cdef double[:, :, ::1] i, f, g, o  # (T, N, H), LSTM; also:
    cdef double[:, :, ::1] a_i, a_f, a_g, a_o  # the arguments of their activations, unclipped
    cdef double[:, :, ::1] m  # o*tanh(c): h before the projection
    cdef double[:, :, ::1] r, z, n  # (T, N, H), GRU; also:
    cdef double[:, :, ::1] a_r, a_z, a_n
    cdef double[:, :, ::1] q  # U_n h + b_hn, multiplied by r if reset_after
    cdef double[:, :, ::1] rh  # r*h, multiplied by U_n if not reset_after
    cdef double[:, :, ::1] fh  # f*h, multiplied by U_n; MGU, which also has f, n, a_f and a_n
    cdef dict tape_arrays  # the quantities that a tape returns, by name

    def __init__(self, network, x):
        steps, rows = x.shape[:2]
        hidden = (steps, rows, network.hidden_size)
        self.x = x
        self.h_prev = np.zeros((steps, rows, network.state_size))
        self.h_operand = self.h_prev if network.precision is None else self.h_prev.copy()
        self.h = np.zeros((steps, rows, network.state_size))
        if network.cell == "LSTM":
            self.c_prev, self.c, self.m = np.zeros(hidden), np.zeros(hidden), np.zeros(hidden)
            self.i, self.f = np.zeros(hidden), np.zeros(hidden)
            self.g, self.o = np.zeros(hidden), np.zeros(hidden)
            self.a_i, self.a_f = np.zeros(hidden), np.zeros(hidden)
            self.a_g, self.a_o = np.zeros(hidden), np.zeros(hidden)
            self.tape_arrays = {"i": self.i, "f": self.f, "g": self.g, "o": self.o, "c": self.c}
        else:
            self.c_prev, self.c = np.zeros((steps, rows, 0)), np.zeros((steps, rows, 0))
            self.n, self.a_n = np.zeros(hidden), np.zeros(hidden)
        if network.cell == "GRU":
            self.r, self.z = np.zeros(hidden), np.zeros(hidden)
            self.a_r, self.a_z = np.zeros(hidden), np.zeros(hidden)
            self.q, self.rh = np.zeros(hidden), np.zeros(hidden)
            self.tape_arrays = {"r": self.r, "z": self.z, "n": self.n}
        if network.cell == "MGU":
            self.f, self.a_f, self.fh = np.zeros(hidden), np.zeros(hidden), np.zeros(hidden)
            self.tape_arrays = {"f": self.f, "n": self.n}
        self.tape_arrays["h"] = self.h

    def arrays(self):
        """The quantities that a tape returns, by name."""
        return self.tape_arrays


# ---- Formulas that all cells use -----------------------------------------------------------------

cdef double affine(double[:, ::1] weight, double[::1] bias, Py_ssize_t row,
                   double[:, :, ::1] v, Py_ssize_t t, Py_ssize_t b):
    """Row `row` of: bias + weight v."""
    cdef Py_ssize_t k
    cdef double a = bias[row]
    for k in range(weight.shape[1]):
        a += weight[row, k] * v[t, b, k]
    return a


cdef double gradient_operand(str precision, double dy):
    """A gradient as the products of the backward pass read it."""
    return to_bfloat16(<float>dy) if precision in _BFLOAT16 else dy


cdef void affine_backward(str precision, double[:, ::1] weight, Py_ssize_t row,
                         double[:, :, ::1] v, Py_ssize_t t, Py_ssize_t b, double da,
                         double[:, ::1] dweight, double[::1] dbias,
                         double[:, :, ::1] dv):
    cdef Py_ssize_t k
    dbias[row] += da
    da = gradient_operand(precision, da)
    for k in range(weight.shape[1]):
        dweight[row, k] += da * v[t, b, k]
        dv[t, b, k] += da * weight[row, k]


cdef double gate(Direction p, Steps s, Py_ssize_t row, Py_ssize_t t, Py_ssize_t b):
    """Row `row` of: W x + b_ih + U h + b_hh, the argument of a gate's activation."""
    return (affine(p.weight_ih, p.bias_ih, row, s.x, t, b)
            + affine(p.weight_hh, p.bias_hh, row, s.h_operand, t, b))


cdef void gate_backward(Direction p, Steps s, Py_ssize_t row, Py_ssize_t t, Py_ssize_t b, double da,
                       Direction dp, Steps ds):
    affine_backward(p.precision, p.weight_ih, row, s.x, t, b, da,
                    dp.weight_ih, dp.bias_ih, ds.x)
    affine_backward(p.precision, p.weight_hh, row, s.h_operand, t, b, da,
                    dp.weight_hh, dp.bias_hh, ds.h_prev)


# ---- The LSTM cell -------------------------------------------------------------------------------

cdef void lstm_step(Direction p, Steps s, Py_ssize_t t, Py_ssize_t b):
    """One step of one row (Hochreiter and Schmidhuber 1997, Gers et al. 2000; torch.nn.LSTM).

        i  = sigmoid(W_i x + b_ii + U_i h + b_hi [+ p_i*c])
        f  = sigmoid(W_f x + b_if + U_f h + b_hf [+ p_f*c]), or with input_forget 1 - i
        g  = tanh   (W_g x + b_ig + U_g h + b_hg)
        c' = f*c + i*g
        o  = sigmoid(W_o x + b_io + U_o h + b_ho [+ p_o*c'])
        h' = o*tanh(c'), or with a projection W_hr (o*tanh(c'))

    In brackets: peepholes (Gers and Schmidhuber 2000). Projection: Sak et al. 2014.

    Other activations may replace sigmoid, the tanh of g and the tanh of c': recurrent_activation,
    activation and output_activation (ONNX's f, g and h). With clip, the arguments of i, f, g and o
    are clamped, after adding the bias and the peephole; c' is not, neither on its way to the next
    step nor in h'. With input_forget W_f, U_f, p_f and f's biases are not read. Both are as in ONNX
    Runtime.
    """
    cdef Py_ssize_t H = s.i.shape[2], j, k
    for j in range(H):
        s.a_i[t, b, j] = gate(p, s, 0 * H + j, t, b)
        s.a_f[t, b, j] = 0 if p.input_forget else gate(p, s, 1 * H + j, t, b)
        s.a_g[t, b, j] = gate(p, s, 2 * H + j, t, b)
        s.a_o[t, b, j] = gate(p, s, 3 * H + j, t, b)
        if p.peephole:
            s.a_i[t, b, j] += p.weight_peephole[0 * H + j] * s.c_prev[t, b, j]
            if not p.input_forget:
                s.a_f[t, b, j] += p.weight_peephole[1 * H + j] * s.c_prev[t, b, j]
        s.i[t, b, j] = clipped(p.recurrent_activation, p.clip, s.a_i[t, b, j])
        if p.input_forget:
            s.f[t, b, j] = 1 - s.i[t, b, j]
        else:
            s.f[t, b, j] = clipped(p.recurrent_activation, p.clip, s.a_f[t, b, j])
        s.g[t, b, j] = clipped(p.activation, p.clip, s.a_g[t, b, j])
        s.c[t, b, j] = s.f[t, b, j] * s.c_prev[t, b, j] + s.i[t, b, j] * s.g[t, b, j]
        if p.peephole:
            s.a_o[t, b, j] += p.weight_peephole[2 * H + j] * s.c[t, b, j]
        s.o[t, b, j] = clipped(p.recurrent_activation, p.clip, s.a_o[t, b, j])
        s.m[t, b, j] = s.o[t, b, j] * activate(p.output_activation, s.c[t, b, j])
    if p.projection:
        round_operand(p.precision, s.m[t, b], 0)
    for k in range(s.h.shape[2]):
        if p.projection:
            s.h[t, b, k] = 0
            for j in range(H):
                s.h[t, b, k] += p.weight_hr[k, j] * s.m[t, b, j]
        else:
            s.h[t, b, k] = s.m[t, b, k]


cdef void lstm_step_backward(Direction p, Steps s, Py_ssize_t t, Py_ssize_t b,
                            Direction dp, Steps ds):
    """From ds.h, ds.c at [t, b] to ds.x, ds.h_prev, ds.c_prev there; adds to the parameters' dp."""
    cdef Py_ssize_t H = s.i.shape[2], j, k
    cdef double c, dh, dm, dc, di, df, dg, do, da_i, da_f, da_g, da_o
    for k in range(s.h.shape[2]):
        if p.projection:
            dh = gradient_operand(p.precision, ds.h[t, b, k])
            for j in range(H):
                dp.weight_hr[k, j] += dh * s.m[t, b, j]
                ds.m[t, b, j] += dh * p.weight_hr[k, j]
        else:
            ds.m[t, b, k] = ds.h[t, b, k]
    for j in range(H):
        c, dm = s.c[t, b, j], ds.m[t, b, j]
        do = dm * activate(p.output_activation, c)
        dc = ds.c[t, b, j] + dm * s.o[t, b, j] * slope(p.output_activation, c)
        da_o = clipped_backward(p.recurrent_activation, p.clip, s.a_o[t, b, j], do)
        if p.peephole:
            dp.weight_peephole[2 * H + j] += da_o * c
            dc += da_o * p.weight_peephole[2 * H + j]
        di = dc * s.g[t, b, j]
        df = dc * s.c_prev[t, b, j]
        dg = dc * s.i[t, b, j]
        ds.c_prev[t, b, j] = dc * s.f[t, b, j]
        if p.input_forget:
            di -= df
        da_i = clipped_backward(p.recurrent_activation, p.clip, s.a_i[t, b, j], di)
        da_f = clipped_backward(p.recurrent_activation, p.clip, s.a_f[t, b, j], df)
        da_g = clipped_backward(p.activation, p.clip, s.a_g[t, b, j], dg)
        if p.peephole:
            dp.weight_peephole[0 * H + j] += da_i * s.c_prev[t, b, j]
            ds.c_prev[t, b, j] += da_i * p.weight_peephole[0 * H + j]
            if not p.input_forget:
                dp.weight_peephole[1 * H + j] += da_f * s.c_prev[t, b, j]
                ds.c_prev[t, b, j] += da_f * p.weight_peephole[1 * H + j]
        gate_backward(p, s, 0 * H + j, t, b, da_i, dp, ds)
        if not p.input_forget:
            gate_backward(p, s, 1 * H + j, t, b, da_f, dp, ds)
        gate_backward(p, s, 2 * H + j, t, b, da_g, dp, ds)
        gate_backward(p, s, 3 * H + j, t, b, da_o, dp, ds)


# ---- The GRU cell --------------------------------------------------------------------------------

cdef void gru_step(Direction p, Steps s, Py_ssize_t t, Py_ssize_t b):
    """One step of one row (Cho et al. 2014; torch.nn.GRU).

        r  = sigmoid(W_r x + b_ir + U_r h + b_hr)
        z  = sigmoid(W_z x + b_iz + U_z h + b_hz)
        n  = tanh(W_n x + b_in + r*(U_n h + b_hn))    reset_after
        n  = tanh(W_n x + b_in + U_n (r*h) + b_hn)    not reset_after
        h' = z*h + (1-z)*n                            update_gate "carry"
        h' = (1-z)*h + z*n                            update_gate "write" (Chung et al. 2014)

    Other activations may replace sigmoid and tanh: recurrent_activation and activation (ONNX's f
    and g). With clip, their arguments are clamped, as in ONNX Runtime.
    """
    cdef Py_ssize_t H = s.r.shape[2], j
    cdef double h_prev, z, rest, n
    for j in range(H):
        s.a_r[t, b, j] = gate(p, s, 0 * H + j, t, b)
        s.a_z[t, b, j] = gate(p, s, 1 * H + j, t, b)
        s.r[t, b, j] = clipped(p.recurrent_activation, p.clip, s.a_r[t, b, j])
        s.z[t, b, j] = clipped(p.recurrent_activation, p.clip, s.a_z[t, b, j])
        if not p.reset_after:
            s.rh[t, b, j] = s.r[t, b, j] * s.h_prev[t, b, j]
    if not p.reset_after:
        round_operand(p.precision, s.rh[t, b], p.h_least)
    for j in range(H):
        s.a_n[t, b, j] = affine(p.weight_ih, p.bias_ih, 2 * H + j, s.x, t, b)
        if p.reset_after:
            s.q[t, b, j] = affine(p.weight_hh, p.bias_hh, 2 * H + j, s.h_operand, t, b)
            s.a_n[t, b, j] += s.r[t, b, j] * s.q[t, b, j]
        else:
            s.a_n[t, b, j] += affine(p.weight_hh, p.bias_hh, 2 * H + j, s.rh, t, b)
        s.n[t, b, j] = clipped(p.activation, p.clip, s.a_n[t, b, j])
        h_prev, z, n = s.h_prev[t, b, j], s.z[t, b, j], s.n[t, b, j]
        rest = complement(p.recurrent_activation, p.clip, s.a_z[t, b, j])  # 1 - z
        if p.write:
            s.h[t, b, j] = rest * h_prev + z * n
        else:
            s.h[t, b, j] = z * h_prev + rest * n


cdef void gru_step_backward(Direction p, Steps s, Py_ssize_t t, Py_ssize_t b,
                           Direction dp, Steps ds):
    """From ds.h at [t, b] to ds.x and ds.h_prev there; adds to the parameters' dp."""
    cdef Py_ssize_t H = s.r.shape[2], j
    cdef double h_prev, z, rest, n, dh, da_n, da_r, da_z
    for j in range(H):
        h_prev, z, n, dh = s.h_prev[t, b, j], s.z[t, b, j], s.n[t, b, j], ds.h[t, b, j]
        rest = complement(p.recurrent_activation, p.clip, s.a_z[t, b, j])  # 1 - z
        if p.write:
            ds.h_prev[t, b, j] += dh * rest
            ds.z[t, b, j] = dh * (n - h_prev)
            ds.n[t, b, j] = dh * z
        else:
            ds.h_prev[t, b, j] += dh * z
            ds.z[t, b, j] = dh * (h_prev - n)
            ds.n[t, b, j] = dh * rest
        da_n = clipped_backward(p.activation, p.clip, s.a_n[t, b, j], ds.n[t, b, j])
        affine_backward(p.precision, p.weight_ih, 2 * H + j, s.x, t, b, da_n,
                        dp.weight_ih, dp.bias_ih, ds.x)
        if p.reset_after:
            ds.r[t, b, j] = da_n * s.q[t, b, j]
            ds.q[t, b, j] = da_n * s.r[t, b, j]
            affine_backward(p.precision, p.weight_hh, 2 * H + j, s.h_operand, t, b, ds.q[t, b, j],
                            dp.weight_hh, dp.bias_hh, ds.h_prev)
        else:
            affine_backward(p.precision, p.weight_hh, 2 * H + j, s.rh, t, b, da_n,
                            dp.weight_hh, dp.bias_hh, ds.rh)
    for j in range(H):
        if not p.reset_after:
            ds.r[t, b, j] = ds.rh[t, b, j] * s.h_prev[t, b, j]
            ds.h_prev[t, b, j] += ds.rh[t, b, j] * s.r[t, b, j]
        da_r = clipped_backward(p.recurrent_activation, p.clip, s.a_r[t, b, j], ds.r[t, b, j])
        da_z = clipped_backward(p.recurrent_activation, p.clip, s.a_z[t, b, j], ds.z[t, b, j])
        gate_backward(p, s, 0 * H + j, t, b, da_r, dp, ds)
        gate_backward(p, s, 1 * H + j, t, b, da_z, dp, ds)


# ---- The MGU cell --------------------------------------------------------------------------------

cdef void mgu_step(Direction p, Steps s, Py_ssize_t t, Py_ssize_t b):
    """One step of one row (Zhou et al. 2016).

        f  = sigmoid(W_f x + b_if + U_f h + b_hf)
        n  = tanh(W_n x + b_in + U_n (f*h) + b_hn)
        h' = (1-f)*h + f*n

    Other activations may replace sigmoid and tanh, and clip is applied, as in a GRU.
    """
    cdef Py_ssize_t H = s.f.shape[2], j
    cdef double rest
    for j in range(H):
        s.a_f[t, b, j] = gate(p, s, 0 * H + j, t, b)
        s.f[t, b, j] = clipped(p.recurrent_activation, p.clip, s.a_f[t, b, j])
        s.fh[t, b, j] = s.f[t, b, j] * s.h_prev[t, b, j]
    round_operand(p.precision, s.fh[t, b], p.h_least)
    for j in range(H):
        s.a_n[t, b, j] = (affine(p.weight_ih, p.bias_ih, 1 * H + j, s.x, t, b)
                          + affine(p.weight_hh, p.bias_hh, 1 * H + j, s.fh, t, b))
        s.n[t, b, j] = clipped(p.activation, p.clip, s.a_n[t, b, j])
        rest = complement(p.recurrent_activation, p.clip, s.a_f[t, b, j])  # 1 - f
        s.h[t, b, j] = rest * s.h_prev[t, b, j] + s.f[t, b, j] * s.n[t, b, j]


cdef void mgu_step_backward(Direction p, Steps s, Py_ssize_t t, Py_ssize_t b,
                            Direction dp, Steps ds):
    """From ds.h at [t, b] to ds.x and ds.h_prev there; adds to the parameters' dp."""
    cdef Py_ssize_t H = s.f.shape[2], j
    cdef double rest, dh, da_f, da_n
    for j in range(H):
        dh = ds.h[t, b, j]
        rest = complement(p.recurrent_activation, p.clip, s.a_f[t, b, j])  # 1 - f
        ds.h_prev[t, b, j] += dh * rest
        ds.f[t, b, j] = dh * (s.n[t, b, j] - s.h_prev[t, b, j])
        ds.n[t, b, j] = dh * s.f[t, b, j]
        da_n = clipped_backward(p.activation, p.clip, s.a_n[t, b, j], ds.n[t, b, j])
        affine_backward(p.precision, p.weight_ih, 1 * H + j, s.x, t, b, da_n,
                        dp.weight_ih, dp.bias_ih, ds.x)
        affine_backward(p.precision, p.weight_hh, 1 * H + j, s.fh, t, b, da_n,
                        dp.weight_hh, dp.bias_hh, ds.fh)
    for j in range(H):
        ds.f[t, b, j] += ds.fh[t, b, j] * s.h_prev[t, b, j]
        ds.h_prev[t, b, j] += ds.fh[t, b, j] * s.f[t, b, j]
        da_f = clipped_backward(p.recurrent_activation, p.clip, s.a_f[t, b, j], ds.f[t, b, j])
        gate_backward(p, s, 0 * H + j, t, b, da_f, dp, ds)


# ---- Time: one direction of one layer, any cell --------------------------------------------------

ctypedef void (*Step)(Direction, Steps, Py_ssize_t, Py_ssize_t)
ctypedef void (*StepBackward)(Direction, Steps, Py_ssize_t, Py_ssize_t, Direction, Steps)


cdef Step step_of(str cell):
    return lstm_step if cell == "LSTM" else gru_step if cell == "GRU" else mgu_step


cdef StepBackward step_backward_of(str cell):
    if cell == "LSTM":
        return lstm_step_backward
    return gru_step_backward if cell == "GRU" else mgu_step_backward


cdef Py_ssize_t time_of(Py_ssize_t step, Py_ssize_t length, bint reverse) noexcept:
    """The t of a row's step-th step; a reverse direction starts at the row's last valid step."""
    return length - 1 - step if reverse else step


cdef bint starts_from_zero(Py_ssize_t step, Py_ssize_t t, Py_ssize_t b, bint reverse,
                           unsigned char[:, ::1] reset):
    """Whether a boundary lies between step t and the step before it (or the initial state).

    reset[t] is a boundary between t-1 and t. A reverse direction reaches t from t+1, and no
    boundary lies between its initial state and the row's last valid step.
    """
    if reverse:
        return step > 0 and reset[t + 1, b]
    return reset[t, b]


cdef void run(Direction p, Steps s, Py_ssize_t[::1] lengths, unsigned char[:, ::1] reset,
              bint reverse, double[:, ::1] h, double[:, ::1] c):
    """Takes every row's h (N, S) and c (N, H) from the initial to the last state; skips padding."""
    cdef Py_ssize_t b, step, t, k
    cdef bint zero
    cdef Step take_step = step_of(p.cell)
    for b in range(lengths.shape[0]):
        for step in range(lengths[b]):
            t = time_of(step, lengths[b], reverse)
            zero = starts_from_zero(step, t, b, reverse, reset)
            for k in range(h.shape[1]):
                s.h_prev[t, b, k] = 0 if zero else h[b, k]
                s.h_operand[t, b, k] = s.h_prev[t, b, k]
            round_operand(p.precision, s.h_operand[t, b], p.h_least)
            for k in range(c.shape[1]):
                s.c_prev[t, b, k] = 0 if zero else c[b, k]
            take_step(p, s, t, b)
            for k in range(h.shape[1]):
                h[b, k] = s.h[t, b, k]
            for k in range(c.shape[1]):
                c[b, k] = s.c[t, b, k]


cdef void run_backward(Direction p, Steps s, Py_ssize_t[::1] lengths, unsigned char[:, ::1] reset,
                       bint reverse, double[:, :, :] dy, double[:, ::1] dh, double[:, ::1] dc,
                       Direction dp, Steps ds):
    """The same steps, last one first: turns dh and dc of the last state into those of the initial.

    dy (T, N, S) is the gradient of this direction's part of the layer's output.
    """
    cdef Py_ssize_t b, step, t, k
    cdef bint zero
    cdef StepBackward step_backward = step_backward_of(p.cell)
    for b in range(lengths.shape[0]):
        for step in range(lengths[b] - 1, -1, -1):
            t = time_of(step, lengths[b], reverse)
            zero = starts_from_zero(step, t, b, reverse, reset)
            for k in range(dh.shape[1]):
                ds.h[t, b, k] = dh[b, k] + dy[t, b, k]
            for k in range(dc.shape[1]):
                ds.c[t, b, k] = dc[b, k]
            step_backward(p, s, t, b, dp, ds)
            for k in range(dh.shape[1]):
                dh[b, k] = 0 if zero else ds.h_prev[t, b, k]
            for k in range(dc.shape[1]):
                dc[b, k] = 0 if zero else ds.c_prev[t, b, k]


cdef void scale_valid(double[:, :, ::1] v, double[:, :, ::1] scale, Py_ssize_t[::1] lengths):
    """v *= scale at valid steps: dropout, and its own derivative."""
    cdef Py_ssize_t b, t, k
    for b in range(lengths.shape[0]):
        for t in range(lengths[b]):
            for k in range(v.shape[2]):
                v[t, b, k] *= scale[t, b, k]


cdef void round_valid(str precision, double[:, :, ::1] v, Py_ssize_t[::1] lengths):
    """Rounds the input of a layer in place, at valid steps."""
    cdef Py_ssize_t b, t
    for b in range(lengths.shape[0]):
        for t in range(lengths[b]):
            round_operand(precision, v[t, b], 0)


# ---- Layers: the public classes ------------------------------------------------------------------

class Grads(NamedTuple):
    """Derivatives for a forward call's inputs. A row of length 0 passes its state's derivative on.

    Attributes:
        x: (T, N, I), zero at padded steps.
        state: for the initial state: h (L*D, N, S), for an LSTM (h, c), c (L*D, N, H).
        params: for each parameter, by name, in the order of `parameter_shapes`.
    """

    x: object
    state: object
    params: dict


class Tape:
    """What a forward call kept for `backward`: copies of its inputs, and every step's values."""

    def __init__(self, network, params, lengths, reset, dropout_scale):
        self._network = network
        self._params = params
        self._lengths = lengths
        self._reset = reset
        self._dropout_scale = dropout_scale
        self._directions = []  # (Direction, Steps), layer-major

    def saved(self, layer, reverse, name):
        """One quantity of a layer's direction at every step.

        Args:
            layer: 0 is the one that reads x.
            reverse: whether to return the second direction of a bidirectional network.
            name: "i" "f" "g" "o" "c" (LSTM), "r" "z" "n" (GRU), "f" "n" (MGU)
                or "h"; z as the network's `update_gate` defines it.

        Returns:
            A copy, (T, N, H), or (T, N, S) for "h"; zero at padded steps.

        Raises:
            ValueError: there is no such layer, direction or quantity.
        """
        network = self._network
        if not 0 <= layer < network.num_layers:
            raise ValueError(f"layer: got {layer}, wanted 0..{network.num_layers - 1}")
        if reverse and not network.bidirectional:
            raise ValueError("reverse: got True, but the network is not bidirectional")
        _, s = self._directions[layer * network.num_directions + bool(reverse)]
        arrays = s.arrays()
        if name not in arrays:
            raise ValueError(f"name: got {name!r}, wanted one of {sorted(arrays)}")
        return np.array(arrays[name])


class _Network:
    """Layers and directions, shared by all cells; each cell adds its step."""

    cell = ""
    gates = 0
    proj_size = 0
    peephole = False
    output_activation = None
    input_forget = False
    reset_after = True
    update_gate = "carry"
    weights_are_rounded = False  # whether the matrices that forward takes are rounded already

    def _init(self, input_size, hidden_size, num_layers, bias, bidirectional, reverse,
              recurrent_activation, activation, clip, precision):
        for name, size in [("input_size", input_size), ("hidden_size", hidden_size),
                           ("num_layers", num_layers)]:
            if operator.index(size) < 1:
                raise ValueError(f"{name}: got {size}, wanted at least 1")
        if bidirectional and reverse:
            raise ValueError("reverse: excludes bidirectional")
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bool(bias)
        self.bidirectional = bool(bidirectional)
        self.reverse = bool(reverse)
        self.recurrent_activation = _check_activation("recurrent_activation", recurrent_activation)
        self.activation = _check_activation("activation", activation)
        self.clip = None if clip is None else _check_number("clip", clip)
        if clip is not None and self.clip <= 0:
            raise ValueError(f"clip: got {clip}, wanted a number above 0")
        if precision not in (None, *_PRECISIONS):
            raise ValueError(f'precision: got {precision!r}, wanted None or one of {_PRECISIONS}')
        self.precision = precision

    @property
    def num_directions(self):
        return 2 if self.bidirectional else 1

    @property
    def state_size(self):
        """S, the size of h."""
        return self.proj_size or self.hidden_size

    def _options(self):
        return (self.cell, self.input_size, self.hidden_size, self.num_layers, self.bias,
                self.bidirectional, self.reverse, self.proj_size, self.peephole, self.reset_after,
                self.update_gate, self.recurrent_activation, self.activation,
                self.output_activation, self.clip, self.input_forget, self.precision)

    def _suffixes(self):
        """The suffixes of the parameters' names, by direction, layer-major."""
        return [f"_l{layer}" + direction for layer in range(self.num_layers)
                for direction in ("", "_reverse")[:self.num_directions]]

    def parameter_shapes(self):
        """Names and shapes of all parameters, by layer, then direction, as PyTorch names them."""
        stacked = self.gates * self.hidden_size
        shapes = {}
        for index, suffix in enumerate(self._suffixes()):
            first = index < self.num_directions
            shapes["weight_ih" + suffix] = (
                stacked, self.input_size if first else self.num_directions * self.state_size)
            shapes["weight_hh" + suffix] = (stacked, self.state_size)
            if self.bias:
                shapes["bias_ih" + suffix] = (stacked,)
                shapes["bias_hh" + suffix] = (stacked,)
            if self.proj_size:
                shapes["weight_hr" + suffix] = (self.proj_size, self.hidden_size)
            if self.peephole:
                shapes["weight_peephole" + suffix] = (3 * self.hidden_size,)
        return shapes

    def forward(self, params, x, state=None, *, lengths=None, reset=None, dropout_scale=None):
        """Runs the network over a batch of sequences. All numbers are converted to float64; with a
        precision the operands of products are then rounded, here to values in float64.

        Args:
            params: a mapping with exactly the names and shapes of `parameter_shapes`.
            x: (T, N, I).
            state: the initial state, zero if None: h (L*D, N, S); for an LSTM the pair
                (h, c), c (L*D, N, H).
            lengths: (N,) integers in 0..T, each row's valid steps; T for all rows if None. Later
                steps are never read.
            reset: (T, N) booleans; True at t is a boundary between t-1 and t, in both directions.
            dropout_scale: (L-1, T, N, D*S), the factors by which the outputs of all layers but the
                last are multiplied.

        Returns:
            y (T, N, D*S), zero at padded steps; the last state, shaped as `state`; a `Tape`.

        Raises:
            ValueError: a name, a shape or a length is wrong.
            TypeError: an array does not hold real numbers, lengths not integers, or reset not
                booleans.
        """
        params = self._check_params(params)
        x = _array("x", x, (None, None, self.input_size))
        steps, rows = x.shape[:2]
        h, c = self._check_state("state", state, rows)
        lengths = _check_lengths(lengths, steps, rows)
        reset = _check_reset(reset, steps, rows)
        width = self.num_directions * self.state_size
        if dropout_scale is not None:
            dropout_scale = _array("dropout_scale", dropout_scale,
                                   (self.num_layers - 1, steps, rows, width))
        tape = Tape(self, params, lengths, reset, dropout_scale)
        suffixes = self._suffixes()
        y = x
        for layer in range(self.num_layers):
            if layer > 0 and dropout_scale is not None:
                scale_valid(y, dropout_scale[layer - 1], lengths)
            round_valid(self.precision, y, lengths)
            layer_input, y = y, np.zeros((steps, rows, width))
            for direction in range(self.num_directions):
                index = layer * self.num_directions + direction
                p = Direction(self, params, suffixes[index])
                s = Steps(self, layer_input)
                run(p, s, lengths, reset, self.reverse or direction == 1, h[index], c[index])
                y[:, :, self._columns(direction)] = s.h
                tape._directions.append((p, s))
        return y, self._state(h, c), tape

    def backward(self, tape, dy=None, dstate=None):
        """Derivatives of a scalar for the inputs of `forward`, given those for its results.

        Args:
            tape: from `forward` of this network, or of one with the same options; not modified.
            dy: the derivative for y, (T, N, D*S), zero if None; padded steps are not read.
            dstate: the derivative for the last state, shaped like it; zero if None.

        Returns:
            `Grads`.

        Raises:
            ValueError: a shape is wrong, the tape is another network's, or the precision is "int8".
            TypeError: an array does not hold real numbers.
        """
        if tape._network._options() != self._options():
            raise ValueError("tape: is of a network with other options")
        if self.precision == "int8":
            raise ValueError(
                f'precision: got {self.precision!r}, wanted None or one of {_BFLOAT16} for backward'
            )
        lengths, reset, dropout_scale = tape._lengths, tape._reset, tape._dropout_scale
        steps, rows = reset.shape
        width = self.num_directions * self.state_size
        dh, dc = self._check_state("dstate", dstate, rows)
        if dy is None:
            dy = np.zeros((steps, rows, width))
        dy = _array("dy", dy, (steps, rows, width))
        dparams = {name: np.zeros(shape) for name, shape in self.parameter_shapes().items()}
        suffixes = self._suffixes()
        for layer in reversed(range(self.num_layers)):
            dx = np.zeros((steps, rows, width if layer > 0 else self.input_size))
            for direction in range(self.num_directions):
                index = layer * self.num_directions + direction
                p, s = tape._directions[index]
                dp = Direction(self, dparams, suffixes[index], rounds=False)
                ds = Steps(self, dx)  # both directions add to dx
                run_backward(p, s, lengths, reset, self.reverse or direction == 1,
                             dy[:, :, self._columns(direction)], dh[index], dc[index], dp, ds)
            if layer > 0 and dropout_scale is not None:
                scale_valid(dx, dropout_scale[layer - 1], lengths)
            dy = dx  # for the output of the layer below; for x below the first layer
        return Grads(dy, self._state(dh, dc), dparams)

    def _columns(self, direction):
        """The columns of a direction's h in its layer's output."""
        return slice(direction * self.state_size, (direction + 1) * self.state_size)

    def _state(self, h, c):
        return (h, c) if self.cell == "LSTM" else h

    def _check_params(self, params):
        shapes = self.parameter_shapes()
        missing = [name for name in shapes if name not in params]
        surplus = [name for name in params if name not in shapes]
        if missing or surplus:
            raise ValueError(f"params: missing {missing}, surplus {surplus}")
        return {name: _array(name, params[name], shape) for name, shape in shapes.items()}

    def _check_state(self, name, state, rows):
        """Copies of h (L*D, N, S) and c (L*D, N, H; of size 0 without a cell state)."""
        cells = self.num_layers * self.num_directions
        h, c = state, None
        if self.cell == "LSTM" and state is not None:
            if not isinstance(state, (tuple, list)) or len(state) != 2:
                raise ValueError(f"{name}: wanted the pair (h, c), got {type(state).__name__}")
            h, c = state
        h_shape = (cells, rows, self.state_size)
        c_shape = (cells, rows, self.hidden_size if self.cell == "LSTM" else 0)
        return (np.zeros(h_shape) if h is None else _array(f"{name}, h", h, h_shape),
                np.zeros(c_shape) if c is None else _array(f"{name}, c", c, c_shape))


class LSTM(_Network):
    """torch.nn.LSTM in float64, with further options; `lstm_step` has the formulas.

    Args:
        proj_size: the size of h if it is projected, below `hidden_size`; 0 for none.
        peephole: whether i and f depend on c, and o on c'.
        reverse: one direction, from each row's last valid step to its first; excludes
            bidirectional.
        recurrent_activation: the activation of the gates i, f and o: a name, (name, alpha) or
            (name, alpha, beta); `activate` has the formulas, `_KINDS` the names and the usual parameters.
        activation: the activation of g, in the same form.
        output_activation: the activation of c' in h', in the same form; None: as `activation`.
        clip: the arguments of the gates' and g's activations, including peepholes and biases, are
            clamped to [-clip, clip]; c' is not. None: no clip.
        input_forget: f = 1 - i; the rows, bias and peephole of f have no effect.
        precision: "bfloat16", "bfloat16-dot" or "int8": the operands of products are rounded
            (section "Low precision"), in bfloat16 those of `backward` too, which int8 does not
            have. None: float64.

    Raises:
        ValueError: a size, a number or a name is out of range, or two options exclude each other.
        TypeError: an activation is not a name or such a tuple, or a parameter not a number.
    """

    cell = "LSTM"
    gates = 4

    def __init__(self, input_size, hidden_size, num_layers=1, *, bias=True, bidirectional=False,
                 proj_size=0, peephole=False, reverse=False, recurrent_activation="sigmoid",
                 activation="tanh", output_activation=None, clip=None, input_forget=False,
                 precision=None):
        self._init(input_size, hidden_size, num_layers, bias, bidirectional, reverse,
                   recurrent_activation, activation, clip, precision)
        if not 0 <= proj_size < hidden_size:
            raise ValueError(f"proj_size: got {proj_size}, wanted 0 <= proj_size < hidden_size, "
                             f"which is {hidden_size}")
        self.proj_size = proj_size
        self.peephole = bool(peephole)
        if output_activation is not None:
            output_activation = _check_activation("output_activation", output_activation)
        self.output_activation = None if output_activation == self.activation else output_activation
        self.input_forget = bool(input_forget)


class GRU(_Network):
    """torch.nn.GRU in float64, with further options; `gru_step` has the formulas.

    Args:
        reset_after: r multiplies U_n h + b_hn (True), or h before the product (False).
        update_gate: z multiplies the old state ("carry") or the new ("write").
        reverse: one direction, from each row's last valid step to its first; excludes
            bidirectional.
        recurrent_activation: the activation of the gates r and z: a name, (name, alpha) or (name,
            alpha, beta); `activate` has the formulas, `_KINDS` the names and the usual parameters.
        activation: the activation of n, in the same form.
        clip: the arguments of the gates' and n's activations, including biases, are clamped to
            [-clip, clip]. None: no clip.
        precision: as of an LSTM.

    Raises:
        ValueError: a size, a number or a name is out of range, or two options exclude each other.
        TypeError: an activation is not a name or such a tuple, or a parameter not a number.
    """

    cell = "GRU"
    gates = 3

    def __init__(self, input_size, hidden_size, num_layers=1, *, bias=True, bidirectional=False,
                 reset_after=True, update_gate="carry", reverse=False,
                 recurrent_activation="sigmoid", activation="tanh", clip=None, precision=None):
        self._init(input_size, hidden_size, num_layers, bias, bidirectional, reverse,
                   recurrent_activation, activation, clip, precision)
        if update_gate not in ("carry", "write"):
            raise ValueError(f'update_gate: got {update_gate!r}, wanted "carry" or "write"')
        self.reset_after = bool(reset_after)
        self.update_gate = update_gate


class MGU(_Network):
    """The minimal gated unit in float64; `mgu_step` has the formulas.

    Args:
        reverse: one direction, from each row's last valid step to its first; excludes
            bidirectional.
        recurrent_activation: the activation of the gate f: a name, (name, alpha) or (name, alpha,
            beta); `activate` has the formulas, `_KINDS` the names and the usual parameters.
        activation: the activation of n, in the same form.
        clip: the arguments of f's and n's activations, including biases, are clamped to
            [-clip, clip]. None: no clip.
        precision: as of an LSTM.

    Raises:
        ValueError: a size, a number or a name is out of range, or two options exclude each other.
        TypeError: an activation is not a name or such a tuple, or a parameter not a number.
    """

    cell = "MGU"
    gates = 2

    def __init__(self, input_size, hidden_size, num_layers=1, *, bias=True, bidirectional=False,
                 reverse=False, recurrent_activation="sigmoid", activation="tanh", clip=None,
                 precision=None):
        self._init(input_size, hidden_size, num_layers, bias, bidirectional, reverse,
                   recurrent_activation, activation, clip, precision)


def from_layer(layer, precision=None):
    """The reference network of a layer: same cell and options, without parameters.

    A layer's `precision` is passed on if it is a low precision. The matrices of such a layer
    are rounded already, and the network takes them as they are: in int8 they are q*scale, rounded
    to float32, whatever the scales are.

    Args:
        layer: a recurrent layer.
        precision: that of a call of `layer.forward`; None: the layer's own.

    Raises:
        TypeError: `layer` is not a recurrent layer.
    """
    shared = ("bias", "bidirectional", "reverse", "recurrent_activation", "activation", "clip")
    names = {base.__name__ for base in type(layer).__mro__}
    if "LSTM" in names:
        cell, own = LSTM, ("proj_size", "peephole", "output_activation", "input_forget")
    elif "GRU" in names:
        cell, own = GRU, ("reset_after", "update_gate")
    elif "MGU" in names:
        cell, own = MGU, ()
    else:
        raise TypeError(f"layer: got {type(layer).__name__}, wanted an LSTM, a GRU or an MGU")
    options = {name: getattr(layer, name) for name in shared + own}
    is_rounded = getattr(layer, "precision", None) in _PRECISIONS
    options["precision"] = layer.precision if is_rounded else precision
    network = cell(layer.input_size, layer.hidden_size, layer.num_layers, **options)
    if is_rounded:
        network.weights_are_rounded = True
    return network


# ---- Arguments -----------------------------------------------------------------------------------

def _check_activation(name, given):
    """The bare name if the parameters are the usual ones, else (name, alpha[, beta])."""
    kind, *own = given if isinstance(given, tuple) and given else (given,)
    if not isinstance(kind, str):
        raise TypeError(f"{name}: got {given!r}, wanted a name, (name, alpha) or "
                        "(name, alpha, beta)")
    if kind not in _KINDS:
        raise ValueError(f"{name}: got {given!r}, wanted one of {', '.join(_KINDS)}")
    _, usual = _KINDS[kind]
    if len(own) > len(usual):
        raise ValueError(f"{name}: got {given!r}, wanted at most {len(usual)} parameters")
    parameters = (*(_check_number(name, number) for number in own), *usual[len(own):])
    return kind if parameters == usual else (kind, *parameters)


def _check_number(name, number):
    if not isinstance(number, Real) or isinstance(number, bool):
        raise TypeError(f"{name}: got {number!r}, wanted a number")
    if not math.isfinite(number):
        raise ValueError(f"{name}: got {number!r}, wanted a finite number")
    return float(number)


def _array(name, values, shape, dtype=np.float64):
    """A C-contiguous copy of this dtype, checked for this shape, in which None means any size."""
    array = np.asarray(values)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name}: got dtype {array.dtype}, wanted real numbers")
    sizes = [got if size is None else size for got, size in zip(array.shape, shape)]
    if array.ndim != len(shape) or list(array.shape) != sizes:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name}: got shape {array.shape}, wanted ({wanted})")
    return np.array(array, dtype=dtype, order="C")


def _int8_array(name, values, shape):
    dtype = np.asarray(values).dtype
    if dtype != np.int8:
        raise TypeError(f"{name}: got dtype {dtype}, wanted int8")
    return _array(name, values, shape, np.int8)


def _check_lengths(lengths, steps, rows):
    if lengths is None:
        return np.full(rows, steps, dtype=np.intp)
    array = np.asarray(lengths)
    if array.dtype.kind not in "iu":
        raise TypeError(f"lengths: got dtype {array.dtype}, wanted integers")
    if array.shape != (rows,):
        raise ValueError(f"lengths: got shape {array.shape}, wanted ({rows},)")
    if ((array < 0) | (array > steps)).any():
        raise ValueError(f"lengths: got {array.tolist()}, wanted values in 0..{steps}")
    return np.array(array, dtype=np.intp, order="C")


def _check_reset(reset, steps, rows):
    if reset is None:
        return np.zeros((steps, rows), dtype=np.uint8)
    array = np.asarray(reset)
    if array.dtype.kind != "b":
        raise TypeError(f"reset: got dtype {array.dtype}, wanted booleans")
    if array.shape != (steps, rows):
        raise ValueError(f"reset: got shape {array.shape}, wanted ({steps}, {rows})")
    return np.array(array, dtype=np.uint8, order="C")
