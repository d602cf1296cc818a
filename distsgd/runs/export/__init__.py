"""Runs for other programs: metrics as tables, weights as arrays, ONNX and scikit-learn models."""
