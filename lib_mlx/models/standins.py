"""Arrays whose products MLX leaves to our own C on the CPU (native/standins.h)."""

from __future__ import annotations

import ctypes
import weakref
from typing import TYPE_CHECKING, Any, Literal, cast

import mlx.core as mx

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_STEP = 16  # floats between two stand-ins: LM_STANDIN_STEP
_ARENA_COLUMNS = 4096
_FORMATS = {
    mx.float32: 0,
    mx.float16: 1,
    mx.bfloat16: 2,
}
_PACKED_FORMATS = {2: 3, 4: 4, 8: 5}  # by bits

Activation = Literal["silu", "gelu_tanh"]
ACTIVATIONS: tuple[Activation, ...] = ("silu", "gelu_tanh")


class _Matrix(ctypes.Structure):
    _fields_ = (
        ("rows", ctypes.c_int32),
        ("columns", ctypes.c_int32),
        ("format", ctypes.c_int32),
        ("scale_format", ctypes.c_int32),
        ("group_size", ctypes.c_int32),
        ("values", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("biases", ctypes.c_void_p),
    )


class LinearFunction(ctypes.Structure):
    """What a linear layer computes. It does not keep the arrays alive that it points to: a `StandIns` does."""

    _fields_ = (("matrix", _Matrix), ("bias", ctypes.c_void_p))
    matrix: _Matrix


class StandIns:
    """The stand-ins of one model, and the weights that they stand for. Engine thread only.

    Whoever uses one of the arrays holds this object; when the last of them is gone, the weights are.
    """

    def __init__(self, library: ctypes.CDLL, count: int, largest: int) -> None:
        """Make room for `count` stand-ins, the largest for a matrix of `largest` numbers.

        Raises:
            MemoryError: 64 models have stand-ins already.
        """
        self._library = library
        self._kept: list[mx.array] = []
        self._count, self._used = count, 0
        # Never written, never read: only addresses.
        self._arena = _allocate(library, -(-(count * _STEP + largest) // _ARENA_COLUMNS))
        mx.eval(self._arena)
        handle = _open(library, self._arena, count)
        self._handle = handle
        weakref.finalize(self, _close, library, handle, self._kept).atexit = False

    def linear(self, function: LinearFunction) -> mx.array:
        """Return the array w for which x @ w is the function of x."""
        add, matrix = self._library.lib_mlx_standins_add_linear, function.matrix
        return self._add(add, (matrix.columns, matrix.rows), ctypes.byref(function))

    def norm(self, weight: mx.array, epsilon: float) -> mx.array:
        """Return the array w for which x @ w is x / sqrt(mean(x^2) + epsilon) * weight."""
        arguments = weight.size, ctypes.c_float(epsilon), ctypes.c_void_p(self._keep(weight, mx.float32))
        return self._add(self._library.lib_mlx_standins_add_norm, (weight.size, weight.size), *arguments)

    def mlp(self, functions: Sequence[LinearFunction], activation: Activation) -> mx.array:
        """Return the array w for which x @ w is down(activation(gate(x)) * up(x)); the functions are these three."""
        gate, _, down = functions
        references = map(ctypes.byref, functions)
        shape = gate.matrix.columns, down.matrix.rows
        return self._add(self._library.lib_mlx_standins_add_mlp, shape, *references, ACTIVATIONS.index(activation))

    def rotation(self, columns: int, frequencies: mx.array, *, neighbours: bool) -> mx.array:
        """Return the array w for which mx.addmm(positions, x, w) is x with rotary positions."""
        arguments = frequencies.size, int(neighbours), ctypes.c_void_p(self._keep(frequencies, mx.float32))
        return self._add(self._library.lib_mlx_standins_add_rotation, (columns, columns), columns, *arguments)

    def packed_function(self, layer: Any) -> LinearFunction:
        """Return what a `QuantizedLinear` or `QuantizedEmbedding` computes."""
        rows, groups = layer.scales.shape
        kind = _FORMATS[layer.scales.dtype]
        columns, values = groups * layer.group_size, self._keep(layer.weight, mx.uint32)
        scales, biases = self._keep(layer.scales), self._keep(layer.biases)
        bits = _PACKED_FORMATS[layer.bits]
        matrix = _Matrix(rows, columns, bits, kind, layer.group_size, values, scales, biases)
        return LinearFunction(matrix, self._bias(layer))

    def plain_function(self, layer: Any) -> LinearFunction:
        """Return what a `Linear` or `Embedding` computes."""
        rows, columns = layer.weight.shape
        matrix = _Matrix(rows, columns, _FORMATS[layer.weight.dtype], 0, 0, self._keep(layer.weight), None, None)
        return LinearFunction(matrix, self._bias(layer))

    def _bias(self, layer: Any) -> int | None:
        return self._keep(layer.bias, mx.float32) if "bias" in layer else None

    def _keep(self, array: mx.array, dtype: mx.Dtype | None = None) -> int:
        """Return the address of the array's memory, and keep that."""
        array = mx.contiguous(array if dtype is None else array.astype(dtype))
        mx.eval(array)
        self._kept.append(array)
        return _address(array)

    def _add(self, add: Callable[..., None], shape: tuple[int, int], *arguments: object) -> mx.array:
        if self._used == self._count:
            raise IndexError("no stand-in is left")
        add(self._handle, self._used, *arguments)
        # BLAS gets it as a matrix whose rows lie one after another.
        array = mx.as_strided(self._arena, shape, (1, shape[0]), self._used * _STEP)
        mx.eval(array)
        self._used += 1
        return array


def calls(library: ctypes.CDLL) -> int:
    """Return how many products were left to our C."""
    count = library.lib_mlx_standins_calls
    count.restype = ctypes.c_ulong
    return int(count())


def is_reached(library: ctypes.CDLL) -> bool:
    """Return whether MLX's products go through `library`. Engine thread only."""
    before = calls(library)
    try:
        _allocate(library, 1)
    except MemoryError:
        return False
    return calls(library) == before + 1


def _allocate(library: ctypes.CDLL, rows: int) -> mx.array:
    """Return an array that takes addresses, but no memory until it is written.

    All of MLX's own functions write what they allocate, so it is made by a stand-in, too.
    """
    nothing = mx.zeros((_ARENA_COLUMNS, 2))
    mx.eval(nothing)
    handle = _open(library, nothing, 1)
    try:
        library.lib_mlx_standins_add_nothing(handle, 0, _ARENA_COLUMNS, 2)
        arena = mx.zeros((rows, 2)) @ nothing.T
        mx.eval(arena)
    finally:
        _close(library, handle, [])
    return arena.reshape(-1)


def _open(library: ctypes.CDLL, arena: mx.array, count: int) -> ctypes.c_void_p:
    library.lib_mlx_standins_open.restype = ctypes.c_void_p
    handle = library.lib_mlx_standins_open(ctypes.c_void_p(_address(arena)), count)
    if not handle:
        raise MemoryError("too many models are loaded")
    return ctypes.c_void_p(handle)


def _close(library: ctypes.CDLL, handle: ctypes.c_void_p, kept: list[mx.array]) -> None:
    library.lib_mlx_standins_close(handle)
    kept.clear()


def _address(array: mx.array) -> int:
    if array.dtype == mx.bfloat16:  # which Python's buffers do not know
        array = array.view(mx.uint16)
        mx.eval(array)
    return ctypes.addressof(ctypes.c_char.from_buffer(cast("Any", memoryview(cast("Any", array)))))
