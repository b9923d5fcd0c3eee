"""The small work of a step on a CPU, compiled by Numba: residual sums, norms, and attention over the cache.

A step of two rows spends its time in reading weights, which torch's products do at memory speed, and in everything
between them. There torch is slow: its attention for one query reads the cache at 5 GB/s in bfloat16 and 21 GB/s in
float32 (250 positions of 16 heads of 64, two cores), where these loops, on one core, read it at 40 GB/s; and each norm
or sum costs a call of ten microseconds. All run on one thread: they are too short to be shared out.

R rows, D width, H heads, C capacity of the cache. Arrays are NumPy views of the tensors that the engine holds; a cache
in bfloat16 comes as its bits, uint16. Nothing here checks shapes: `fused.py` is the only caller.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload, register_jitable

# No bounds are checked, sums may be reordered, and the compiled code is kept on disk for the next process.
FAST = {"fastmath": True, "nogil": True, "error_model": "numpy", "boundscheck": False, "cache": True}
NORM_EPSILON = np.float32(1e-5)
ROUND_TO_EVEN = np.uint32(0x7FFF)


@intrinsic
def _as_float(_, bits):
    """The float32 that these 32 bits stand for."""
    return types.float32(types.uint32), lambda context, builder, signature, args: builder.bitcast(
        args[0], ir.FloatType()
    )


@intrinsic
def _as_bits(_, number):
    """The 32 bits of a float32."""
    return types.uint32(types.float32), lambda context, builder, signature, args: builder.bitcast(
        args[0], ir.IntType(32)
    )


@register_jitable(inline="always")
def _exp(x):
    """e^x for x at most 0, to about 1e-7 of its size: 2^n times a polynomial of degree 6 (Cephes, expf)."""
    x = max(x, np.float32(-87.0))
    n = np.float32(math.floor(x * np.float32(1.44269504) + np.float32(0.5)))
    f = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * f + np.float32(1.3981999507e-3)
    p = p * f + np.float32(8.3334519073e-3)
    p = p * f + np.float32(4.1665795894e-2)
    p = p * f + np.float32(1.6666665459e-1)
    p = p * f + np.float32(5.0000001201e-1)
    p = p * f * f + f + np.float32(1.0)
    return p * _as_float(np.uint32(np.int32(n) + np.int32(127)) << np.uint32(23))


@njit(**FAST)
def add_normalise(x, y, weight, bias, out):
    """x [R,D] += y, for as many rows as y has; out = layer norm of every row of x."""
    rows, width = x.shape
    for r in range(rows):
        row = x[r]
        if r < y.shape[0]:
            more = y[r]
            for i in range(width):
                row[i] += more[i]
        total = np.float32(0.0)
        for i in range(width):
            total += row[i]
        mean = total / np.float32(width)
        spread = np.float32(0.0)
        for i in range(width):
            spread += (row[i] - mean) * (row[i] - mean)
        scale = np.float32(1.0) / np.float32(math.sqrt(spread / np.float32(width) + NORM_EPSILON))
        into = out[r]
        for i in range(width):
            into[i] = (row[i] - mean) * scale * weight[i] + bias[i]


@njit(**FAST)
def product(weight, scale, x, out):
    """out [R,O] = x [R,I] times weight [O,I] transposed, each output times its scale [O]; weight float32 or int8.

    One core reads the weights once for two rows, and sums in float32. For matrices of up to a few megabytes that is
    three to four times as fast as torch's product, which is made for more rows, and it wakes no other thread.
    """
    outputs, inputs = weight.shape
    rows = x.shape[0]
    for r in range(0, rows - 1, 2):
        one, two = x[r], x[r + 1]
        for o in range(outputs):
            row = weight[o]
            first, second = np.float32(0.0), np.float32(0.0)
            for i in range(inputs):
                number = np.float32(row[i])
                first += number * one[i]
                second += number * two[i]
            out[r, o] = first * scale[o]
            out[r + 1, o] = second * scale[o]
    if rows % 2:
        one = x[rows - 1]
        for o in range(outputs):
            row = weight[o]
            first = np.float32(0.0)
            for i in range(inputs):
                first += np.float32(row[i]) * one[i]
            out[rows - 1, o] = first * scale[o]


@njit(**FAST)
def gelu(x, out):
    """out = x * (1 + erf(x / sqrt 2)) / 2, each [R,F]; erf to 2e-7 (Abramowitz and Stegun, 7.1.26)."""
    for r in range(x.shape[0]):
        row, into = x[r], out[r]
        for i in range(x.shape[1]):
            number = row[i]
            z = abs(number) * np.float32(0.70710678)
            t = np.float32(1.0) / (np.float32(1.0) + np.float32(0.3275911) * z)
            p = np.float32(1.061405429)
            p = p * t - np.float32(1.453152027)
            p = p * t + np.float32(1.421413741)
            p = p * t - np.float32(0.284496736)
            p = p * t + np.float32(0.254829592)
            half = np.float32(0.5) * p * t * _exp(-z * z)
            into[i] = number * (half if number < np.float32(0.0) else np.float32(1.0) - half)


@register_jitable(inline="always")
def _softmax(scores, count):
    """In place over the first `count`."""
    top = np.float32(-3e38)
    for t in range(count):
        top = max(top, scores[t])
    total = np.float32(0.0)
    for t in range(count):
        share = _exp(scores[t] - top)
        scores[t] = share
        total += share
    for t in range(count):
        scores[t] /= total


def _wide(number):
    """A number of the cache as float32."""
    raise TypeError("compiled code alone calls this")


@overload(_wide, inline="always")
def _wide_of_type(number):
    if isinstance(number, types.Integer):
        return lambda number: _as_float(np.uint32(number) << np.uint32(16))
    return lambda number: number


def _put(row, place, number):
    """Write a float32 into the cache, rounded to even where its type is shorter."""
    raise TypeError("compiled code alone calls this")


@overload(_put, inline="always")
def _put_of_type(row, place, number):
    if not isinstance(row.dtype, types.Integer):

        def plain(row, place, number):
            row[place] = number

        return plain

    def rounded(row, place, number):
        bits = _as_bits(number)
        even = (bits >> np.uint32(16)) & np.uint32(1)
        row[place] = np.uint16((bits + ROUND_TO_EVEN + even) >> np.uint32(16))

    return rounded


@njit(**FAST)
def remember(qkv, keys, values, position):
    """Write the keys and values of qkv [R,3D] into keys and values [R,C,D] at a position."""
    width = keys.shape[2]
    for r in range(qkv.shape[0]):
        key, value = keys[r, position], values[r, position]
        for i in range(width):
            _put(key, i, qkv[r, width + i])
            _put(value, i, qkv[r, 2 * width + i])


@cache
def attention(head_width: int) -> Callable:
    """The kernel for heads of this width, over a cache in float32 or bfloat16.

    Positions lie one after the other, all heads side by side, so that keys and values are read once, in order.

    Returns:
        attend(query [R,D], keys [R,C,D], values [R,C,D], filled int64 [R], out [R,D], scores [H,C]): a row that
            has nothing filled gives zeros.
    """
    scale = np.float32(1.0 / math.sqrt(head_width))

    @njit(**FAST)
    def attend(query, keys, values, filled, out, scores):
        heads = scores.shape[0]
        for r in range(query.shape[0]):
            count = filled[r]
            q, into = query[r], out[r]
            for t in range(count):
                key = keys[r, t]
                for h in range(heads):
                    product = np.float32(0.0)
                    for i in range(head_width):
                        product += q[h * head_width + i] * _wide(key[h * head_width + i])
                    scores[h, t] = product * scale
            for h in range(heads):
                _softmax(scores[h], count)
            for i in range(heads * head_width):
                into[i] = np.float32(0.0)
            whole = count - count % 4
            for t in range(0, whole, 4):
                v0, v1, v2, v3 = values[r, t], values[r, t + 1], values[r, t + 2], values[r, t + 3]
                for h in range(heads):
                    p0, p1, p2, p3 = scores[h, t], scores[h, t + 1], scores[h, t + 2], scores[h, t + 3]
                    for i in range(head_width):
                        j = h * head_width + i
                        into[j] += p0 * _wide(v0[j]) + p1 * _wide(v1[j]) + p2 * _wide(v2[j]) + p3 * _wide(v3[j])
            for t in range(whole, count):
                value = values[r, t]
                for h in range(heads):
                    for i in range(head_width):
                        into[h * head_width + i] += scores[h, t] * _wide(value[h * head_width + i])

    return attend
