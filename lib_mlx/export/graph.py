"""Writes an ONNX graph node by node: what PyTorch's exporter is for, without PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lib_mlx.errors import UnsupportedFeature

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

OPSET = 20
_IR = 10
_INLINE_BYTES = 1 << 30  # a protocol buffer holds two gigabytes at most


class Graph:
    """A graph under construction; values are known by their names.

    Raises:
        UnsupportedFeature: the package onnx is not installed.
    """

    def __init__(self, name: str) -> None:
        try:
            import onnx
        except ImportError as error:
            raise UnsupportedFeature(
                "The package onnx is not installed.", hint="Run: pip install 'lib-mlx[onnx]'"
            ) from error
        self._onnx: Any = onnx
        self._name = name
        self._nodes: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._constants: dict[str, Any] = {}
        self._bytes = 0

    def input(self, name: str, shape: Sequence[str | int], kind: str = "FLOAT") -> str:
        """Declare an input; sizes that vary have names."""
        value = getattr(self._onnx.TensorProto, kind)
        self._inputs.append(self._onnx.helper.make_tensor_value_info(name, value, shape))
        return name

    def output(self, name: str, value: str, shape: Sequence[str | int]) -> None:
        """Make a value an output."""
        self._nodes.append(self._onnx.helper.make_node("Identity", [value], [name]))
        self._outputs.append(self._onnx.helper.make_tensor_value_info(name, self._onnx.TensorProto.FLOAT, shape))

    def constant(self, value: NDArray[Any] | float | Sequence[int]) -> str:
        """Return a constant: float32, or int64 of integers."""
        array = np.asarray(value)
        array = np.asarray(array, np.int64 if array.dtype.kind == "i" else np.float32, order="C")
        name = f"c{len(self._constants)}"
        self._constants[name] = self._onnx.numpy_helper.from_array(array, name)
        self._bytes += array.nbytes
        return name

    def __call__(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output and return that."""
        name = f"v{len(self._nodes)}"
        self._nodes.append(self._onnx.helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def linear(self, value: str, weight: NDArray[Any], bias: NDArray[Any] | None = None) -> str:
        """Multiply with a weight of PyTorch's layout (outputs, inputs)."""
        product = self("MatMul", value, self.constant(weight.T))
        return product if bias is None else self("Add", product, self.constant(bias))

    def reshape(self, value: str, *shape: int) -> str:
        """Give it another shape; -1 is what is left, 0 what it was."""
        return self("Reshape", value, self.constant(list(shape)))

    def save(self, path: Path) -> Path:
        """Check and write the graph, large weights beside it; returns the path."""
        helper = self._onnx.helper
        graph = helper.make_graph(self._nodes, self._name, self._inputs, self._outputs, list(self._constants.values()))
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=_IR, producer_name="lib_mlx"
        )
        apart = self._bytes > _INLINE_BYTES
        self._onnx.save_model(model, str(path), save_as_external_data=apart, location=f"{path.name}.data")
        self._onnx.checker.check_model(str(path), full_check=True)
        return path
