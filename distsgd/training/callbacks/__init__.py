"""Callbacks, printed progress, TensorBoard and Prometheus: what follows a training."""
