"""Layers that compute with weights as the checkpoint stores them, in our own C, on the CPU.

MLX's quantised and half-precision products are slow on the CPU, and so are its many small operations around them. Here
layers keep their arrays and their class's behaviour but for the one call that a stand-in answers (standins.py). Each
kind of layer is compared with MLX's own before it is kept.
"""

from __future__ import annotations

import logging
import math
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import mlx.core as mx
from mlx.nn.layers.positional_encoding import RoPE

from lib_mlx.models import cpu_library
from lib_mlx.models.standins import ACTIVATIONS, StandIns, calls, is_reached
from lib_mlx.models.upstream import Embedding, Linear, Llama3RoPE, QuantizedEmbedding, QuantizedLinear

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Callable

    from mlx.nn.layers.base import Module

    from lib_mlx.models.standins import LinearFunction

log = logging.getLogger(__name__)

_HALF = (mx.float16, mx.bfloat16)
_TOLERANCE = 2e-5  # of the largest number
_TRIALS = 3  # stand-ins that one module may take, at most
_ROWS = (1, 5, 40)  # of samples: one, few, many


class Packed:
    """A layer whose products are left to our C: mixed into the layer's own class."""

    _stand_in: mx.array
    _batch: mx.array  # the same as a batch of one
    _stand_ins: StandIns

    def _compute(self, x: mx.array) -> mx.array:
        # MLX flattens x before it multiplies it with a matrix, but not a batch of one with another.
        return x @ (self._batch if x.ndim == 3 and x.shape[0] == 1 else self._stand_in)


class PackedLinear(Packed):
    """A `Linear` or `QuantizedLinear`."""

    def __call__(self, x: mx.array) -> mx.array:
        """Multiply."""
        return self._compute(x)


class PackedEmbedding(Packed):
    """An `Embedding` or `QuantizedEmbedding`; its rows are looked up in what is stored, and widened."""

    def __call__(self, x: mx.array) -> mx.array:
        """Look up, in float32."""
        layer = cast("Any", self)
        if "scales" not in layer:
            return cast("mx.array", layer.weight[x].astype(mx.float32))
        scheme = layer.group_size, layer.bits
        scales, biases = (array[x].astype(mx.float32) for array in (layer.scales, layer.biases))
        return mx.dequantize(layer.weight[x], scales, biases, *scheme)

    def as_linear(self, x: mx.array) -> mx.array:
        """Multiply."""
        return self._compute(x)


class WholeModule(Packed):
    """An RMS norm or an MLP: all of its operations in one."""

    def __call__(self, x: mx.array, *arguments: Any, **options: Any) -> Any:
        """Compute, or leave what is more than an `x` to the module's own class."""
        if arguments or options:
            return super().__call__(x, *arguments, **options)  # type: ignore[misc]
        return self._compute(x)


class Rotation(Packed):
    """Rotary positions."""

    _positions: Positions

    def __call__(self, x: mx.array, offset: Any = 0) -> Any:
        """Turn x (batch, heads, length, width), which begins at `offset`: one number, or one of each row."""
        if x.ndim != 4 or x.dtype != mx.float32 or x.shape[-1] != self._stand_in.shape[-1]:
            return super().__call__(x, offset=offset)  # type: ignore[misc]
        return mx.addmm(self._positions.find(offset, x.shape[2]), x, self._stand_in)


class Positions:
    """The positions that were asked for last: queries and keys, and often all layers, ask for the same."""

    def __init__(self) -> None:
        self._offset: Any = None
        self._length = 0
        self._found: mx.array

    def find(self, offset: Any, length: int) -> mx.array:
        """Return positions that can be broadcast to (batch, heads, length, width)."""
        if not self._is_last(offset, length):
            if isinstance(offset, mx.array):
                self._found = offset.astype(mx.float32).reshape(-1, 1, 1, 1)
                if length > 1:
                    self._found = self._found + mx.arange(length, dtype=mx.float32)[:, None]
            else:
                self._found = mx.arange(offset, offset + length, dtype=mx.float32)[:, None]
            self._offset, self._length = offset, length
        return self._found

    def _is_last(self, offset: Any, length: int) -> bool:
        if length != self._length:
            return False
        if isinstance(offset, mx.array) or isinstance(self._offset, mx.array):
            return offset is self._offset
        return bool(offset == self._offset)


def pack(
    network: Module,
    progress: Callable[[int], None] = lambda _: None,
    between: Callable[[], None] = lambda: None,
) -> int:
    """Let our C compute what layers it can, with their weights as they are; return how many bytes of weights these are.

    Args:
        network: as it was loaded.
        progress: told the bytes of weights that are in memory.
        between: called before each layer with a matrix; what it raises ends the work.
    """
    library = cpu_library.load()
    modules = _modules(network)
    layers = [module for module in modules if _has_packable_weight(module)]
    if library is None or not layers or not is_reached(library):
        return 0
    try:
        packer = _Packer(library, _TRIALS * len(modules), max(map(_count_numbers, layers)))
    except MemoryError as error:
        log.debug("MLX computes all layers itself: %s", error)
        return 0
    done = 0
    for layer in layers:
        between()
        if packer.pack_layer(layer):
            done += _count_bytes(layer)
            progress(done)
    for module in modules:
        packer.pack_whole(module)
    return done


def separate(network: Module) -> None:
    """Have modules that compute all of their parts in one call these again: a part has been replaced."""
    for module in _modules(network):
        if isinstance(module, WholeModule) and cast("Any", module).get("gate_proj") is not None:
            whole = type(module)
            module.__class__ = whole.__bases__[1]
            object.__setattr__(module, "_whole", whole)


def join(network: Module) -> None:
    """Undo `separate`: the parts are back."""
    for module in _modules(network):
        whole = module.__dict__.pop("_whole", None)
        if whole is not None:
            module.__class__ = whole


def _modules(network: Module) -> list[Any]:
    listed: Any = network.modules()  # type: ignore[no-untyped-call]
    return list({id(module): module for module in listed}.values())


def is_packed(module: Module) -> bool:
    """Return whether the module computes with its weights as they are, whatever their type."""
    return isinstance(module, PackedLinear | PackedEmbedding)


def _count_bytes(layer: Any) -> int:
    arrays = (layer.get(name) for name in ("weight", "scales", "biases"))
    return sum(array.nbytes for array in arrays if array is not None)


def _has_packable_weight(module: Any) -> bool:
    if type(module) in {Linear, Embedding}:
        return module.weight.dtype in _HALF
    if type(module) not in {QuantizedLinear, QuantizedEmbedding} or module.mode != "affine":
        return False
    fits_blocks = module.bits in {4, 8} or (module.bits == 2 and _count_columns(module) % 64 == 0)
    return fits_blocks and module.scales.dtype in {mx.float32, *_HALF} and module.get("global_scale") is None


def _count_columns(layer: Any) -> int:
    return int(layer.scales.shape[-1] * layer.group_size if "scales" in layer else layer.weight.shape[-1])


def _count_numbers(layer: Any) -> int:
    return int(layer.weight.shape[0] * _count_columns(layer))


class _Packer:
    """Changes the modules of one network, each kind after a look at its results."""

    def __init__(self, library: ctypes.CDLL, count: int, largest: int) -> None:
        self._library = library
        self._stand_ins = StandIns(library, count, largest)
        self._positions = Positions()
        self._functions: dict[int, LinearFunction] = {}  # by the layer's id
        self._verdicts: dict[object, bool] = {}  # of what has been compared, by what makes a kind
        self._rotations: dict[object, mx.array] = {}

    def pack_layer(self, layer: Any) -> bool:
        """Pack a layer with a matrix; return whether it computes with that now."""
        function = (self._stand_ins.packed_function if "scales" in layer else self._stand_ins.plain_function)(layer)
        stand_in = self._stand_ins.linear(function)
        arrays = (layer.get(name) for name in ("weight", "scales", "bias"))
        kind = (type(layer), *((array.shape, array.dtype) for array in arrays if array is not None))
        if not self._decide(kind, partial(self._is_right, layer, stand_in)):
            _leave(layer)
            return False
        self._functions[id(layer)] = function
        self._change(
            layer, PackedEmbedding if isinstance(layer, Embedding | QuantizedEmbedding) else PackedLinear, stand_in
        )
        return True

    def pack_whole(self, module: Any) -> None:
        """Make one operation of a module that consists of many."""
        if type(module).__name__.endswith("RMSNorm") and hasattr(module, "eps") and set(module) == {"weight"}:
            self._pack_norm(module)
        elif all(id(module.get(name)) in self._functions for name in ("gate_proj", "up_proj", "down_proj")):
            self._pack_mlp(module)
        if type(module.get("rope")) in {RoPE, Llama3RoPE}:
            self._pack_rotation(module.rope, getattr(module, "head_dim", module.rope.dims))

    def _pack_norm(self, norm: Any) -> None:
        weight = norm.weight.astype(mx.float32)
        for offset in (0, 1):  # some families store the weight less 1
            stand_in = self._stand_ins.norm(weight + offset, norm.eps)
            if self._decide((type(norm), norm.eps, weight.shape, offset), partial(_agree_on_rows, norm, stand_in)):
                self._change(norm, WholeModule, stand_in)
                return
        _leave(norm)

    def _pack_mlp(self, mlp: Any) -> None:
        functions = [self._functions[id(mlp[name])] for name in ("gate_proj", "up_proj", "down_proj")]
        x = _sample(1, functions[0].matrix.columns)
        x = x * (2 / mx.sqrt(mx.square(mlp.gate_proj(x)).mean()))  # where activations differ most
        for activation in ACTIVATIONS:
            stand_in = self._stand_ins.mlp(functions, activation)
            if _agree(x @ stand_in, mlp(x)):
                self._change(mlp, WholeModule, stand_in)
                return
        _leave(mlp)

    def _pack_rotation(self, rope: Any, columns: int) -> None:
        frequencies = _frequencies(rope)
        kind = type(rope), columns, rope.dims, rope.traditional, bytes(memoryview(cast("Any", frequencies)))
        if kind not in self._rotations:  # one for all layers: they turn by the same angles
            self._rotations[kind] = self._stand_ins.rotation(columns, frequencies, neighbours=rope.traditional)
        if self._decide(kind, partial(_agree_on_positions, rope, self._rotations[kind])):
            self._change(rope, Rotation, self._rotations[kind])
            object.__setattr__(rope, "_positions", self._positions)
        else:
            _leave(rope)

    def _decide(self, kind: object, compare: Callable[[], bool]) -> bool:
        """Compare the first of a kind."""
        if kind not in self._verdicts:
            self._verdicts[kind] = compare()
        return self._verdicts[kind]

    def _change(self, module: Any, mixin: type[Packed], stand_in: mx.array) -> None:
        # Its class, not the module: whoever refers to it keeps it, and its arrays stay where they were. Past
        # Module's own way of setting attributes, which would make them parameters.
        module.__class__ = _mix(mixin, type(module))
        object.__setattr__(module, "_stand_in", stand_in)
        object.__setattr__(module, "_batch", stand_in[None])
        object.__setattr__(module, "_stand_ins", self._stand_ins)

    def _is_right(self, layer: Any, stand_in: mx.array) -> bool:
        """Compare some outputs with those of the dequantised weights."""
        count = layer.weight.shape[0]
        some = mx.array(sorted({*range(min(16, count)), *range(max(0, count - 16), count)}))
        weight = _widened(layer, some)
        bias = layer.bias[some].astype(mx.float32) if "bias" in layer else 0
        before = calls(self._library)
        for rows in _ROWS:
            x = _sample(rows, weight.shape[1])
            if not _agree((x @ stand_in)[:, some], x @ weight.T + bias):
                return False
        return calls(self._library) == before + len(_ROWS)


def _leave(module: Any) -> None:
    log.debug("MLX computes a %s itself: ours gives other results", type(module).__name__)


def _agree(found: mx.array, expected: mx.array) -> bool:
    difference, scale = (float(cast("float", mx.abs(array).max().item())) for array in (found - expected, expected))
    return difference <= _TOLERANCE * scale


def _agree_on_rows(norm: Any, stand_in: mx.array) -> bool:
    x = _sample(3, stand_in.shape[0]) * mx.array([[1], [1e-2], [100]])
    return _agree(x @ stand_in, norm(x))


def _agree_on_positions(rope: Any, stand_in: mx.array) -> bool:
    x = _sample(12, stand_in.shape[0]).reshape(2, 2, 3, -1)
    offsets = 0, 50, mx.array([7, -3])
    found = [mx.addmm(Positions().find(offset, 3), x, stand_in) for offset in offsets]
    return _agree(mx.stack(found), mx.stack([rope(x, offset=offset) for offset in offsets]))


_mixed: dict[tuple[type, type], type] = {}


def _mix(mixin: type[Packed], own: type) -> type:
    return _mixed.setdefault((mixin, own), type(own.__name__, (mixin, own), {}))


def _widened(layer: Any, some: mx.array) -> mx.array:
    """Return some rows of a layer's matrix in float32."""
    if "scales" not in layer:
        return cast("mx.array", layer.weight[some].astype(mx.float32))
    scales, biases = (array[some].astype(mx.float32) for array in (layer.scales, layer.biases))
    return mx.dequantize(layer.weight[some], scales, biases, layer.group_size, layer.bits)


def _sample(rows: int, columns: int) -> mx.array:
    return mx.random.normal((rows, columns), key=mx.random.key(rows))


def _frequencies(rope: Any) -> mx.array:
    if type(rope) is Llama3RoPE:
        return cast("mx.array", 1 / rope["_freqs"])
    pairs = mx.arange(0, rope.dims, 2, dtype=mx.float32) / rope.dims
    return cast("mx.array", mx.exp(-math.log(rope.base) * pairs) * rope.scale)
