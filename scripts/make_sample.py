"""Rebuild the embedded sample from a fetched CIFAR-10: the first images of each class.

python scripts/make_sample.py
"""

import shutil

from distsgd.data.cifar10.archive import CLASSES, SHAPE, records_of, sample_of
from distsgd.data.dataset import open_dataset
from distsgd.data.locations import SAMPLE
from distsgd.data.shards import write_dataset


def main() -> None:
    source = open_dataset("cifar10")
    train, test = sample_of(records_of(source.train.batches(), source.test.batches()))
    shutil.rmtree(SAMPLE, ignore_errors=True)
    SAMPLE.mkdir()
    manifest = write_dataset(
        SAMPLE, name="cifar10-sample", shape=SHAPE, classes=CLASSES,
        train=train, test=test, shards=2,
    )  # fmt: skip
    print(f"{manifest.rows('train')} training and {manifest.rows('test')} test images in {SAMPLE}")


if __name__ == "__main__":
    main()
