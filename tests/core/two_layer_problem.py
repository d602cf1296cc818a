"""Random images, labels and parameters of a model: what its kernel is tested on."""

import numpy as np

from distsgd.core.model import KernelSettings, Preprocessing, make_architecture
from distsgd.core.model.reference import forward, loss_and_gradient, with_bias

CLASSES = 10


class Problem:
    """Random images, labels and parameters; and the gradient by its definition."""

    def __init__(self, features, examples, dtype="float64", model="mlp:20"):
        rng = np.random.default_rng(features + examples)
        self.dtype = dtype
        self.preprocessing = Preprocessing(rng.uniform(100, 150, features), scale=64.0)
        self.pixels = rng.integers(0, 256, (examples, features)).astype(np.uint8)
        self.labels = rng.integers(0, CLASSES, examples).astype(np.uint8)
        self.model = make_architecture(model, features, CLASSES)
        layers = [rng.standard_normal(layer.kept) for layer in self.model.layers]
        kept = [layer * np.sqrt(2 / layer.shape[1]) for layer in layers]
        self.kept = np.concatenate([layer.reshape(-1) for layer in kept]).astype(dtype)
        self.kept = self.kept.reshape(self.model.kept_shape)
        self.layers = kept
        self.flat = self.model.pad(self.kept)

    def features(self):
        return with_bias((self.pixels - self.preprocessing.mean) / self.preprocessing.scale)

    def scores(self):
        return forward(self.layers, self.features())[1][-1]

    def kernel(self, loss, slot_size, most=None):
        return self.model.kernel(
            KernelSettings(loss, self.preprocessing, slot_size, self.dtype, most)
        )

    def gradient(self, kernel, rows):
        """The gradient of some rows, written over nan, and their loss."""
        out = np.full_like(self.flat, np.nan)
        found = kernel.gradient(self.flat, self.pixels[rows], self.labels[rows], out)
        return out, found

    def definition(self, loss):
        """Sum of L_i, and of its gradient in the shape in which parameters are kept."""
        count = len(self.labels)
        mean, gradients = loss_and_gradient(self.layers, self.features(), self.labels, loss)
        gradient = np.concatenate([part.reshape(-1) for part in gradients])
        return mean * count, gradient * count


def slots_of(examples, slot_size):
    return [slice(low, low + slot_size) for low in range(0, examples, slot_size)]
