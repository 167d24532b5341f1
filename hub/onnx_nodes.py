"""An ONNX graph while it is put together, node by node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ..base.dependencies import extra
from ..base.linear import EPSILON

OPSET = 18
"""Of the operators in the graph; ONNX Runtime has them since 1.14."""

IR_VERSION = 8
"""Of the file format: the one of ONNX 1.13, which brought opset 18."""


class Graph:
    """Nodes, constants, inputs and outputs while they are put together; a tensor is known by its name."""

    def __init__(self, half: bool = False) -> None:
        self._onnx, self._half = extra("onnx", "onnx"), half
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []

    def add(self, operator: str, *inputs: str, outputs: int = 1, named: str | None = None, **attributes: Any) -> Any:
        """Add a node; returns the name of its output, or a list of names for several."""
        name = named or f"{operator}_{len(self._nodes)}"
        names = [name] if outputs == 1 else [f"{name}.{k}" for k in range(outputs)]
        self._nodes.append(self._onnx.helper.make_node(operator, inputs, names, name=name, **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, x: Tensor | np.ndarray, name: str | None = None) -> str:
        """A tensor of the file, in its own type."""
        values = np.ascontiguousarray(x.numpy() if isinstance(x, Tensor) else x)
        name = name or f"constant_{len(self._constants)}"
        self._constants[name] = self._onnx.numpy_helper.from_array(values, name)
        return name

    def number(self, value: float) -> str:
        """A float32 scalar; equal ones are stored once."""
        name = f"number_{value:g}"
        return name if name in self._constants else self.constant(np.float32(value), name)

    def axes(self, *axes: int) -> str:
        """Axes, as the operators take them."""
        name = f"axes_{'_'.join(map(str, axes))}"
        return name if name in self._constants else self.constant(np.array(axes, np.int64), name)

    def matrix(self, x: Tensor) -> str:
        """A matrix, in half precision where the graph keeps its matrices so; a runtime casts it once, when it loads."""
        if not self._half:
            return self.constant(x)
        half = x.half()
        if not half.isfinite().all():
            raise ValueError(f"dtype: expected float32 for weights as large as {x.abs().max():g}, got float16")
        return self.add("Cast", self.constant(half), to=self._onnx.TensorProto.FLOAT)

    def linear(self, x: str, weight: Tensor, bias: Tensor) -> str:
        """(rows, in) -> (rows, out)"""
        return self.add("Gemm", x, self.matrix(weight), self.constant(bias), transB=1)

    def normalise(self, x: str, named: str | None = None) -> str:
        """Rows of length 1."""
        return self.add("Div", x, self.length(x, -1), named=named)

    def length(self, x: str, axis: int) -> str:
        """Euclidean length along an axis, which is kept, at least `EPSILON`."""
        return self.add("Max", self.add("ReduceL2", x, self.axes(axis)), self.number(EPSILON))

    def input(self, name: str, shape: Sequence[int | str], boolean: bool = False) -> str:
        kind = self._onnx.TensorProto.BOOL if boolean else self._onnx.TensorProto.FLOAT
        self._inputs.append(self._onnx.helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, name: str, shape: Sequence[int | str]) -> None:
        """Make a tensor one of the graph's results."""
        self._outputs.append(self._onnx.helper.make_tensor_value_info(name, self._onnx.TensorProto.FLOAT, shape))

    def to_model(self) -> Any:
        helper = self._onnx.helper
        graph = helper.make_graph(
            self._nodes, "collaborative_experts", self._inputs, self._outputs, list(self._constants.values())
        )
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="collaborative_experts",
        )
