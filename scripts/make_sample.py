"""Makes the embedded sample anew from a fetched CIFAR-10: the first images of every class.

Usage: python scripts/make_sample.py
"""

import shutil

import numpy as np

from distsgd.data.dataset import Dataset, Split
from distsgd.data.locations import SAMPLE, find_dataset
from distsgd.data.shards import write_dataset

TRAIN_A_CLASS, TEST_A_CLASS = 150, 40


def first_of_each_class(split: Split, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and labels of the first ``count`` images of every class, in their own order."""
    chosen = [np.flatnonzero(split.labels == label)[:count] for label in range(10)]
    indices = np.sort(np.concatenate(chosen))
    pixels = np.empty((len(indices), 3072), dtype=np.uint8)
    split.gather(indices, pixels)
    return pixels, split.labels[indices]


def main() -> None:
    source = Dataset(find_dataset("cifar10"))
    shutil.rmtree(SAMPLE, ignore_errors=True)
    SAMPLE.mkdir()
    manifest = write_dataset(
        SAMPLE,
        name="cifar10-sample",
        shape=source.manifest.shape,
        classes=source.manifest.classes,
        train=first_of_each_class(source.train, TRAIN_A_CLASS),
        test=first_of_each_class(source.test, TEST_A_CLASS),
        shards=2,
    )
    print(f"{manifest.rows('train')} training and {manifest.rows('test')} test images in {SAMPLE}")


if __name__ == "__main__":
    main()
