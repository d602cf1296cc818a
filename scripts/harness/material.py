"""Files as users have them, sound and odd, for `faults.py commands`."""

from __future__ import annotations

import gzip
import os
import shutil
from pathlib import Path
from typing import Any


class Material:
    """Files as a user has them, made once: copies of them go into the folder of each case."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make(self) -> None:
        """Train, import, and write files."""
        from distsgd.data.importing.import_dataset import import_dataset
        from distsgd.data.locations import SAMPLE
        from distsgd.training.training import train

        self.folder.mkdir(parents=True)
        self._files()
        before = dict(os.environ)
        os.environ.update(DISTSGD_CACHE=f"{self.folder}/cache", DISTSGD_HOME=f"{self.folder}/home")
        try:
            import_dataset(self.folder / "plain.csv", "columns")
            import_dataset(self.folder / "photos", "photos")
            shutil.copytree(SAMPLE, self.folder / "cache/datasets/cifar10")
            few = {"workers": 0, "epochs": 1, "checkpoint_seconds": 1e-9}
            train("sample", run_dir=self.folder / "good", **few)  # type: ignore[arg-type]
            train("sample", run_dir=self.folder / "two", model="mlp:3", **few)  # type: ignore[arg-type]
            train("columns", run_dir=self.folder / "rows", batch_size=8, workers=0, epochs=1)
        finally:
            os.environ.clear()
            os.environ.update(before)
        shutil.copytree(SAMPLE, self.folder / "sample")

    def _files(self) -> None:
        import numpy as np
        import pyarrow as pa
        import pyarrow.parquet as pq
        from PIL import Image

        random, here = np.random.default_rng(0), self.folder
        rows = random.normal(size=(60, 3))
        kinds = [("a", "b")[number % 2] for number in range(60)]
        lines = [f"{x:.3f},{y:.3f},{z:.3f},{k}" for (x, y, z), k in zip(rows, kinds, strict=True)]
        plain = "\n".join(["u,v,w,label", *lines]) + "\n"
        texts = {
            "plain": plain, "empty": "", "header": "u,v,label\n",
            "comma": plain.replace("\n", ",\n"), "one-class": plain.replace(",b", ",a"),
            "semicolons": plain.replace(",", ";").replace(".", ","),
            "markup": plain.replace(",a\n", ",a[/b]\n").replace(",b\n", ",:cat: [bold]\n"),
            "escape": plain.replace(",a\n", ",\x1b[31m\n"), "nan": plain.replace("0.", "nan"),
            "huge": plain.replace("0.", "1e400"), "quotes": plain.replace(",a", ',"a'),
            "nul": plain.replace(",a", ",\0"),
            "unicode": plain.replace(",a", ",日本").replace(",b", ",café"),
            "wide": ",".join(f"c{n}" for n in range(3000)) + "\n" + ",".join(["1"] * 3000) + "\n",
            "ragged": plain.replace(",a\n", "\n"), "same": plain.replace("u,v", "u,u"),
            "index": plain.replace("u,v", ",v"), "three": "\n".join(plain.splitlines()[:4]) + "\n",
        }  # fmt: skip
        for name, text in texts.items():
            (here / f"{name}.csv").write_text(text)
        (here / "bom.csv").write_text(plain, encoding="utf-8-sig")
        (here / "utf16.csv").write_text(plain, encoding="utf-16")
        (here / "latin.csv").write_bytes(plain.replace(",a", ",é").encode("latin-1"))
        (here / "plain.csv.gz").write_bytes(gzip.compress(plain.encode()))
        (here / "plain.txt").write_text(plain)
        images = random.integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)
        labels = np.arange(24) % 2
        arrays: dict[str, dict[str, Any]] = {
            "plain": {"x": images, "y": labels}, "flat": {"x": images.reshape(24, -1), "y": labels},
            "fortran": {"x": np.asfortranarray(images), "y": labels}, "none": {},
            "short": {"x": images, "y": labels[:9]}, "floats": {"x": images / 255.0, "y": labels},
            "objects": {"x": np.array([{}, []], dtype=object)},
            "scalars": {"x": np.float64(1), "y": np.int64(1)},
            "empty": {"x": images[:0], "y": labels[:0]},
            "negative": {"x": images, "y": labels - 9}, "complex": {"x": images * 1j, "y": labels},
        }  # fmt: skip
        for name, content in arrays.items():
            np.savez(here / f"{name}.npz", **content)
        columns = {"u": rows[:, 0], "v": rows[:, 1], "label": kinds}
        tables: dict[str, dict[str, Any]] = {
            "plain": columns, "none": {"label": kinds}, "markup": {**columns, "[/b]": rows[:, 2]},
            "nulls": {**columns, "v": [None] * 60}, "lists": {**columns, "v": [[1.0]] * 60},
            "bytes": {**columns, "v": [b"x"] * 60},
        }  # fmt: skip
        for name, content in tables.items():
            pq.write_table(pa.table(content), here / f"{name}.parquet")
        for kind in ("cat", "dog"):
            (here / "photos" / kind).mkdir(parents=True)
            for number in range(6):
                picture = Image.fromarray(images[number])
                picture.save(here / "photos" / kind / f"{number}.png")
        Image.fromarray(images[0]).resize((32, 32)).save(here / "picture.png")
        Image.fromarray(images[0, :, :, 0]).save(here / "grey.png")
        Image.new("1", (5000, 1)).save(here / "thin.png")
        Image.new("RGBA", (3, 3)).save(here / "clear.gif")
        configs = {
            "plain.toml": "epochs = 1\nworkers = 0\n", "empty.toml": "",
            "bom.toml": "\ufeffepochs = 1\nworkers = 0\n", "table.toml": "[train]\nepochs = 1\n",
            "deep.toml": "epochs = " + "[" * 3000 + "\n", "markup.toml": 'loss = "[/b]"\n',
            "date.toml": "epochs = 1979-05-27\n", "text.toml": 'epochs = "one"\n',
            "twice.toml": "epochs = 1\nepochs = 2\n", "escape.toml": '"\x1b" = 1\n',
            "fleet.toml": 'workers = 2\nspeed = 1000\nslow = "1:4"\n[train]\nepochs = 1\n',
            "plain.json": '{"settings": {"epochs": 1}}', "list.json": "[]", "null.json": "null",
            "nan.json": '{"settings": {"epochs": NaN}}', "deep.json": "[" * 100_000,
            "big.json": '{"settings": {"seed": 1' + "0" * 5000 + "}}",
        }  # fmt: skip
        for name, text in configs.items():
            (here / name).write_text(text)
        (here / "bytes.toml").write_bytes(b"loss = '\xff'\n")
        (here / "utf16.toml").write_text("epochs = 1\n", encoding="utf-16")
