"""A model as an ONNX file that takes raw pixels."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from distsgd.errors import import_optional
from distsgd.runs.export.layers import ExportedModel

__all__ = ["onnx_bytes"]

_OPSET, _IR = 17, 8
"""Of 2022, so that runtimes of the last years read the file."""


def onnx_bytes(model: ExportedModel) -> bytes:
    """The content of an ONNX file.

    Its input is ``pixels``, uint8 of shape (examples, *shape), or for data that are no images
    ``columns``, float64 of shape (examples, features). Its outputs are ``label`` (int64, index of
    the class with the largest score), ``scores`` and ``probabilities`` (softmax of the scores),
    these of the dtype of the weights. The names of the classes are in the metadata, as JSON.

    Raises:
        DistsgdError: the package onnx is not installed.
    """
    onnx = import_optional("onnx", "onnx")
    helper, kinds = onnx.helper, onnx.TensorProto
    dtype = model.weights[0].dtype
    kind = kinds.FLOAT if dtype == np.float32 else kinds.DOUBLE
    constants: list[Any] = []
    nodes: list[Any] = []

    def constant(name: str, value: Any) -> str:
        constants.append(onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(operation: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operation, inputs, [output], **attributes))
        return output

    if model.low is None:
        name = "pixels"
        given = helper.make_tensor_value_info(name, kinds.UINT8, ["examples", *model.shape])
        flat = node("Reshape", [name, constant("flat", np.array([-1, model.features]))], "rows")
    else:
        name = "columns"
        given = helper.make_tensor_value_info(name, kinds.DOUBLE, ["examples", model.features])
        inside = name
        if model.bounds is not None:
            inside = node("Max", [name, constant("lowest", model.bounds[0])], "not_below")
            inside = node("Min", [inside, constant("highest", model.bounds[1])], "inside")
        above = node("Sub", [inside, constant("low", model.low)], "above_low")
        flat = node("Mul", [above, constant("factor", model.factor)], "steps")
        if model.bounds is None:
            bounds = [constant("least", np.float64(0)), constant("most", np.float64(255))]
            flat = node("Round", [node("Clip", [flat, *bounds], "clipped")], "rows")
    x = node("Cast", [flat], "numbers", to=kind)
    x = node("Sub", [x, constant("mean", model.mean)], "centred")
    x = node("Mul", [x, constant("inverse_scale", dtype.type(1 / model.scale))], "features")
    layers = list(zip(model.weights, model.biases, strict=True))
    for number, (weights, bias) in enumerate(layers, 1):
        inputs = [x, constant(f"W{number}", weights), constant(f"b{number}", bias)]
        last = number == len(layers)
        x = node("Gemm", inputs, "scores" if last else f"sums{number}", transB=1)
        x = x if last else node("Relu", [x], f"hidden{number}")
    node("Softmax", [x], "probabilities", axis=1)
    node("ArgMax", [x], "label", axis=1, keepdims=0)
    classes = len(model.classes)
    graph = helper.make_graph(
        nodes,
        "distsgd",
        [given],
        [
            helper.make_tensor_value_info("label", kinds.INT64, ["examples"]),
            helper.make_tensor_value_info("scores", kind, ["examples", classes]),
            helper.make_tensor_value_info("probabilities", kind, ["examples", classes]),
        ],
        constants,
    )
    made = helper.make_model(
        graph,
        producer_name="distsgd",
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR,
    )
    about = {"classes": list(model.classes), "loss": model.loss, "updates": model.version}
    about.update({"columns": list(model.columns)} if model.columns else {})
    helper.set_model_props(made, {key: json.dumps(value) for key, value in about.items()})
    onnx.checker.check_model(made)
    content: bytes = made.SerializeToString()
    return content
