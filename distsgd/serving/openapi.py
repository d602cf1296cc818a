"""The description of the interface in OpenAPI 3.1, of the model that is served."""

from __future__ import annotations

from typing import Any

from distsgd.serving.limits import Limits
from distsgd.training.predictor import Predictor
from distsgd.version import __version__

__all__ = ["description"]

_ABOUT = {
    "model": {"type": "string", "description": "Name of the run."},
    "version": {"type": "integer", "description": "Updates applied to W."},
    "weights_sha256": {"type": "string", "description": "SHA-256 of W."},
}

_ERRORS = {
    400: "The body is not what its type says.",
    401: "The token is missing or wrong.",
    408: "The body arrived too slowly.",
    413: "The body is too large, or has too many rows.",
    415: "The type of content is not known.",
    422: "Rows or images do not fit the model.",
    503: "Too many requests are waiting, or the server stops.",
}


def description(model: Predictor, limits: Limits) -> dict[str, Any]:
    """The interface as JSON.

    Args:
        model: that is served.
        limits: of requests.
    """
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"Predictions of {model.run}",
            "version": __version__,
            "description": (
                f"Classifies {_examples(model)} as one of {len(model.classes)} classes. At most "
                f"{limits.rows:,} rows and {limits.body:,} bytes a request; images of at most "
                f"{limits.pixels:,} pixels."
            ),
        },
        "security": [{"bearer": []}],
        "paths": {
            "/predict": {"post": _predict(model)},
            "/model": {"get": _got("The model: classes, shape and columns.", _schema("Model"))},
            "/health": {"get": _got("Whether the server is alive.", _schema("Status"), open_=True)},
            "/ready": {
                "get": {
                    **_got("Whether it takes requests.", _schema("Status"), open_=True),
                }
            },
            "/metrics": {"get": _got("Metrics for Prometheus.", None)},
            "/openapi.json": {"get": _got("This description.", {"type": "object"})},
        },
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            "schemas": _schemas(model),
        },
    }


def _examples(model: Predictor) -> str:
    if model.takes_images:
        return f"images, which are resized to {model.shape[2]} x {model.shape[1]} pixels,"
    return f"rows of {model.width} values"


def _schema(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _got(summary: str, schema: dict[str, Any] | None, *, open_: bool = False) -> dict[str, Any]:
    content = {"text/plain": {}} if schema is None else {"application/json": {"schema": schema}}
    found: dict[str, Any] = {
        "summary": summary,
        "responses": {"200": {"description": "The answer.", "content": content}},
    }
    if open_:
        found["security"] = []
    else:
        found["responses"]["401"] = _refused(401)
    return found


def _refused(status: int) -> dict[str, Any]:
    content = {"application/json": {"schema": _schema("Error")}}
    return {"description": _ERRORS[status], "content": content}


def _predict(model: Predictor) -> dict[str, Any]:
    binary = {"schema": {"type": "string", "format": "binary"}}
    content: dict[str, Any] = {"application/json": {"schema": _schema("Rows")}}
    if model.takes_images:
        form = {"type": "object", "additionalProperties": {"type": "string", "format": "binary"}}
        content |= {"image/*": binary, "multipart/form-data": {"schema": form}}
    content["application/x-npy"] = binary
    return {
        "summary": "Classify rows or images, one or many.",
        "description": (
            "JSON rows; an image as it is; a form with files of images; or a NumPy array of shape "
            "(rows, features), as numpy.save writes it."
        ),
        "parameters": [
            {
                "name": "top", "in": "query", "description": "How many classes to name.",
                "schema": {"type": "integer", "minimum": 1, "default": 3},
            }
        ],
        "requestBody": {"required": True, "content": content},
        "responses": {
            "200": {
                "description": "The likeliest classes of each row or image.",
                "content": {"application/json": {"schema": _schema("Predictions")}},
            },
            **{str(status): _refused(status) for status in _ERRORS},
        },
    }  # fmt: skip


def _schemas(model: Predictor) -> dict[str, Any]:
    number = {"type": "number"}
    value = {"type": ["number", *(["string"] if any(model.words) else ()),
                      *(["null"] if any(model.words) or model.fills else ())]}  # fmt: skip
    row: dict[str, Any] = {"type": "array", "items": value}
    if not model.columns:
        row |= {"minItems": model.width, "maxItems": model.width}
    kinds = [row]
    if model.columns:
        named: dict[str, Any] = {"type": "object", "required": list(model.columns)}
        named["properties"] = dict.fromkeys(model.columns, value)
        kinds.append(named)
    rows: dict[str, Any] = {
        "rows": {"type": "array", "items": {"anyOf": kinds}},
        "columns": {
            "type": "array", "items": {"type": "string"},
            "description": "Names of the numbers of a row; without them, the model's order counts.",
        },
        "top": {"type": "integer", "minimum": 1, "default": 3},
    }  # fmt: skip
    if model.takes_images:
        image = {"type": "string", "contentEncoding": "base64"}
        rows["images"] = {"type": "array", "items": image}
    names = {"type": "string", "enum": list(model.classes)}
    prediction = {
        "label": names,
        "classes": {"type": "array", "items": names},
        "probabilities": {"type": "array", "items": number},
    }
    texts = {"type": "array", "items": {"type": "string"}}
    return {
        "Rows": {"type": "object", "properties": rows},
        "Predictions": _object({**_ABOUT, "predictions": {
            "type": "array", "items": _object(prediction)
        }}),
        "Model": _object({
            **_ABOUT, "classes": texts, "shape": {"type": "array", "items": {"type": "integer"}},
            "columns": texts, "width": {
                "type": "integer", "description": "Values of a row, as they are given."
            }, "follows": {
                "type": "boolean", "description": "Whether newer or better checkpoints replace it."
            },
        }),
        "Status": _object({"status": {"type": "string"}}),
        "Error": _object({"error": {"type": "string"}, "hint": {"type": "string"}}),
    }  # fmt: skip


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties}
