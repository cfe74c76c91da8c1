"""The forms in which the processor's runner keeps a matrix: what they mean, said in plain numpy.

The oracle of `kernels/pack.py`, which writes the same bytes fast. A matrix W (N, K) is an `nn.Linear` weight: N
outputs, K inputs. It lies in blocks of 16 rows, one row to a lane of a vector, and columns follow each other as a
product reads them. Np is N rounded up to 16, Kp is K rounded up to 64; what is padded are weights of zero.

    float32    float32 [Np/16][Kp][16]
    bfloat16   uint16  [Np/16][Kp/2][16][2]    the upper half of a float32
    int8       uint8   [Np/16][Kp/4][16][4]    q + 128, -127 <= q <= 127; W = q scale
    int4       uint8   [Np/16][Kp/64][8][16][4]  of 64 columns byte (j, lane, i) holds column 4j + i in its low half
                                               and column 32 + 4j + i in its high half, as q + 8, -8 <= q <= 7
    scales     uint16  [Np/16][groups][16]     bfloat16, one for each row and group of columns

Padding rows have scale 0. A scale may be negative: int4 has one more step below zero than above, and gives it to the
side of the largest weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt2.errors import UserError

KINDS = ("float32", "bfloat16", "int8", "int4")  # of one matrix
FORMATS = (*KINDS, "int4-head")  # of a model: int4 leaves the head in int8, int4-head does not
LANES, CHUNK = 16, 64  # rows and columns are padded to a multiple of these
GROUP = 128  # columns that share a scale in int8, unless told otherwise
# Quotients by which the largest weight of a group is tried: it becomes -CLIP steps, cut to -8. Beyond 8 it is clipped
# so that the others have a finer step. Found on normally distributed weights (docs/log.md).
CLIPS = tuple(np.float32(clip) for clip in np.linspace(7.3, 11.0, 12, dtype=np.float32))

Bits = npt.NDArray[np.uint16]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Packed:
    """One matrix in one of the KINDS."""

    kind: str
    rows: int  # real ones, as `columns`
    columns: int
    data: npt.NDArray[Any]  # as the module says, C-contiguous, 64-byte aligned
    scales: Bits | None = None  # None for float32 and bfloat16
    group: int = 0  # columns that share a scale; 0: all of the row's

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + (0 if self.scales is None else self.scales.nbytes)


def pack(matrix: Floats, kind: str, group: int = GROUP) -> Packed:
    """W (N, K) float32 -> its packed form. `group` is int8's; UserError where a number is not finite."""
    rows, columns = matrix.shape
    packed = empty(rows, columns, kind, group)
    if not np.isfinite(matrix).all():
        raise UserError("holds numbers that are not finite; such weights cannot be packed")
    blocks = to_blocks(matrix)
    if kind == "float32":
        packed.data[:] = blocks
    elif kind == "bfloat16":
        packed.data[:] = to_bfloat16(blocks).reshape(len(blocks), -1, 2, LANES).transpose(0, 1, 3, 2)
    elif kind == "int8":
        _fill_int8(packed, blocks)
    else:
        _fill_int4(packed, blocks)
    return packed


def unpack(packed: Packed) -> Floats:
    """The matrix (N, K) in float32 that the packed form stands for."""
    if packed.kind == "float32":
        blocks = packed.data
    elif packed.kind == "bfloat16":
        blocks = from_bfloat16(packed.data).transpose(0, 1, 3, 2).reshape(len(packed.data), -1, LANES)
    else:
        blocks = _steps(packed) * _columns(packed)
    matrix = blocks.transpose(0, 2, 1).reshape(-1, blocks.shape[1])
    return np.ascontiguousarray(matrix[: packed.rows, : packed.columns])


def empty(rows: int, columns: int, kind: str, group: int = GROUP) -> Packed:
    """A packed matrix with room for everything and nothing in it."""
    shape, dtype, scales = shapes(rows, columns, kind, group)
    return Packed(
        kind,
        rows,
        columns,
        aligned(shape, dtype),
        None if scales is None else aligned(scales, np.uint16),
        {"int8": group, "int4": CHUNK}.get(kind, 0),
    )


def shapes(
    rows: int, columns: int, kind: str, group: int = GROUP
) -> tuple[tuple[int, ...], type[Any], tuple[int, ...] | None]:
    """(shape of the data, its dtype, shape of the scales) of a packed matrix."""
    if kind not in KINDS:
        raise ValueError(f"kind '{kind}' is none of {', '.join(KINDS)}")
    if kind == "int8" and (group < 0 or group % CHUNK):
        raise UserError(f"group = {group}: a multiple of {CHUNK} columns share a scale, or with 0 all of a row")
    blocks, width = -(-rows // LANES), -(-columns // CHUNK) * CHUNK
    if kind == "int8":
        return (blocks, width // 4, LANES, 4), np.uint8, (blocks, -(-width // (group or width)), LANES)
    if kind == "int4":
        return (blocks, width // CHUNK, 8, LANES, 4), np.uint8, (blocks, width // CHUNK, LANES)
    if kind == "bfloat16":
        return (blocks, width // 2, LANES, 2), np.uint16, None
    return (blocks, width, LANES), np.float32, None


def aligned(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An array of that shape whose first byte lies at a multiple of 64, where a cache line begins."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def to_bfloat16(values: npt.ArrayLike) -> Bits:
    """float32 -> bfloat16 bits, to the nearest, ties to even; NaN stays NaN."""
    values = np.asarray(values, np.float32)
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    quiet = (bits >> np.uint32(16)) | np.uint32(0x40)
    return np.where(np.isnan(values), quiet, rounded).astype(np.uint16)


def from_bfloat16(bits: Bits) -> Floats:
    """bfloat16 bits -> float32, exact."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_blocks(matrix: Floats) -> Floats:
    """(N, K) -> [Np/16][Kp][16], zeros where it is padded."""
    rows, columns = matrix.shape
    padded = np.zeros((-(-rows // LANES) * LANES, -(-columns // CHUNK) * CHUNK), np.float32)
    padded[:rows, :columns] = matrix
    return np.ascontiguousarray(padded.reshape(-1, LANES, padded.shape[1]).transpose(0, 2, 1))


def _fill_int8(packed: Packed, blocks: Floats) -> None:
    """The step is a 127th of the group's largest weight, rounded to bfloat16 before it divides."""
    assert packed.scales is not None
    width = packed.group or blocks.shape[1]
    for number, start in enumerate(range(0, blocks.shape[1], width)):
        part = blocks[:, start : start + width]
        packed.scales[:, number] = to_bfloat16(np.abs(part).max(axis=1) / np.float32(127))
    steps = _divide(blocks, _columns(packed), -127, 127) + np.float32(128)
    packed.data[:] = steps.astype(np.uint8).reshape(len(blocks), -1, 4, LANES).transpose(0, 1, 3, 2)


def _fill_int4(packed: Packed, blocks: Floats) -> None:
    """The scale of each row and 64 columns by `_search`; two columns that lie 32 apart share a byte."""
    assert packed.scales is not None
    groups = blocks.reshape(len(blocks), -1, CHUNK, LANES)
    packed.scales[:] = to_bfloat16(_search(groups))
    scales = from_bfloat16(packed.scales)[:, :, None]
    steps = (_divide(groups, scales, -8, 7) + np.float32(8)).astype(np.uint8)
    halves = steps.reshape(*groups.shape[:2], 2, 8, 4, LANES)
    packed.data[:] = (halves[:, :, 0] | halves[:, :, 1] << 4).transpose(0, 1, 2, 4, 3)


def _search(groups: Floats) -> Floats:
    """Weights [blocks][groups][64][16] -> the scales [blocks][groups][16] with the least squared error.

    For each clip the weights t (in units of the largest) become steps q, and the best scale for these steps is
    sum(tq) / sum(qq), which leaves an error of sum(tt) - sum(tq)^2 / sum(qq). Sums run in the order of the columns.
    """
    top = np.take_along_axis(groups, np.abs(groups).argmax(axis=2)[:, :, None], axis=2)  # first of the largest, signed
    units = _divide(groups, top, -1, 1, whole=False)
    best, scale = np.full(top[:, :, 0].shape, -1, np.float32), np.zeros(top[:, :, 0].shape, np.float32)
    for clip in CLIPS:
        steps = np.rint(np.maximum(units * -clip, np.float32(-8)).clip(None, 7))
        products, squares = np.zeros_like(best), np.zeros_like(best)
        for column in range(CHUNK):
            products += units[:, :, column] * steps[:, :, column]
            squares += steps[:, :, column] * steps[:, :, column]
        gain = products * products / np.maximum(squares, np.float32(1))
        better = gain > best
        best = np.where(better, gain, best)
        scale = np.where(better, products / np.maximum(squares, np.float32(1)), scale)
    return scale * top[:, :, 0] + np.float32(0)  # -0 becomes 0


def _divide(values: Floats, scales: Floats, low: int, high: int, whole: bool = True) -> Floats:
    """values / scales, cut to [low, high] and rounded (ties to even); 0 where the scale is 0."""
    zero = scales == 0
    with np.errstate(over="ignore"):  # a scale below float32's normal numbers
        quotient = values / np.where(zero, np.float32(1), scales)
    cut: Floats = np.where(zero, np.float32(0), quotient.clip(low, high))
    return np.rint(cut) if whole else cut


def _columns(packed: Packed) -> Floats:
    """The scale of each weight: [Np/16][Kp][16]."""
    assert packed.scales is not None
    width = packed.data.shape[1] * 4 if packed.kind == "int8" else packed.data.shape[1] * CHUNK
    return np.repeat(from_bfloat16(packed.scales), packed.group or width, axis=1)[:, :width]


def _steps(packed: Packed) -> Floats:
    """The whole numbers q of int8 and int4 as float32: [Np/16][Kp][16]."""
    blocks = len(packed.data)
    if packed.kind == "int8":
        return packed.data.transpose(0, 1, 3, 2).reshape(blocks, -1, LANES).astype(np.float32) - np.float32(128)
    bytes_ = packed.data.transpose(0, 1, 2, 4, 3).reshape(blocks, -1, 32, LANES)
    halves = np.stack([bytes_ & 15, bytes_ >> 4], axis=2).reshape(blocks, -1, LANES)
    return halves.astype(np.float32) - np.float32(8)
