"""Runs for other programs: metrics as tables, weights as arrays, ONNX and scikit-learn models."""

from distsgd.runs.export.export import Exported, export_run
from distsgd.runs.export.layers import ExportedModel, exported
from distsgd.runs.export.sklearn_model import to_sklearn

__all__ = ["Exported", "ExportedModel", "export_run", "exported", "to_sklearn"]
