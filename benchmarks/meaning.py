"""What people say of texts, foretold by MiniLM before and after its feed-forward parts are compressed.

Calibration texts are news (`benchmarks.transformers`). Judged on three tasks that none of the methods sees: how alike
people find two of fifty other news texts (Lee, Pincombe, Welsh 2005), by the cosine of their embeddings; and how
positive they find a tweet or a sentence on a film (Hutto, Gilbert 2014), by a ridge regression on embeddings. The
regression is fitted with the original and kept, as the network is exchanged under what was built on it. The measure is
Pearson's correlation with people. The claim: at both shares own nodes are at least as good as the best alternative, in
every task; it is missed, and stays as it was set. That a budget of the same size is so everywhere is told by the table.
`python -m benchmarks.meaning SHARE METHOD` measures one row anew.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import cache
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import ZipFile

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.data import CACHE
from benchmarks.record import DOCS, insert, markdown, recorded, write
from benchmarks.transformers import METHODS, OURS, PLANNED, TOKENS, cosine, minilm, news, tokenizer, windows

SHARES = (0.3, 0.5)
ALTERNATIVES = ("data-aware SVD", "node dropping")
RATED = {"tweets": "tweets_GroundTruth.txt", "films": "movieReviewSnippets_GroundTruth.txt"}
TASKS = ("similarities", *RATED)
FITTED, JUDGED = 2000, 1000
"""The rated sentences with which the regression is fitted, and others on which it is judged."""

PENALTIES = torch.logspace(-4, 2, 13, dtype=torch.float64)
RESAMPLED = 200
"""Draws of the judged texts, with replacement."""

AT_ONCE = 64


@torch.no_grad()
def embedded(model: nn.Module, encoded: list[list[int]]) -> Tensor:
    """Embeddings, those of equally long texts at once, so that nothing is padded."""
    alike: dict[int, list[int]] = defaultdict(list)
    for k, ids in enumerate(encoded):
        alike[len(ids)].append(k)
    found = torch.empty(len(encoded), model.bert.config.hidden_size)
    for same in alike.values():
        for rows in torch.tensor(same).split(AT_ONCE):
            ids = torch.tensor([encoded[k] for k in rows.tolist()])
            found[rows] = F.normalize(model(ids).mean(1), dim=1)
    return found


def pearson(x: Tensor, y: Tensor) -> float:
    """Of two lists of numbers."""
    return float(torch.corrcoef(torch.stack([x.double(), y.double()]))[0, 1])


def beside(measure: Callable[[Tensor], float], original: Callable[[Tensor], float], count: int) -> tuple[float, float]:
    """A measure of all texts, and how far it varies what it has more than that of the original has.

    That is the standard deviation of the difference over draws of the texts, with replacement.
    """
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randint(count, (count,), generator=generator) for _ in range(RESAMPLED)]
    differences = torch.tensor([measure(drawn) - original(drawn) for drawn in draws])
    return measure(torch.arange(count)), float(differences.std())


@cache
def alike() -> tuple[list[list[int]], Tensor]:
    """Fifty texts, and how alike people find each two of them: from 0 to 1, above the diagonal."""
    rows = [[float(one) for one in line.split()] for line in news("similarities0-1.txt")]
    return [tokenizer().encode(text).ids for text in news("lee.cor")], torch.tensor(rows)


def similarities(model: nn.Module) -> tuple[float, float]:
    """The correlation of cosines with how alike people find two texts, and the spread of what it has more."""
    encoded, people = alike()

    def of(network: nn.Module) -> Callable[[Tensor], float]:
        found = embedded(network, encoded)
        cosines = found @ found.T

        def measure(texts: Tensor) -> float:
            first, second = texts[torch.triu_indices(len(texts), len(texts), 1)].sort(0).values
            two = first != second
            return pearson(cosines[first[two], second[two]], people[first[two], second[two]])

        return measure

    return beside(of(model), of(minilm()), len(people))


@cache
def rated(task: str) -> tuple[list[list[int]], Tensor]:
    """Sentences and how positive people find them, those for the regression first."""
    lines = [line.split("\t") for line in source(RATED[task]).decode().splitlines() if line.strip()]
    order = torch.randperm(len(lines), generator=torch.Generator().manual_seed(0))[: FITTED + JUDGED].tolist()
    encoded = [tokenizer().encode(lines[k][2]).ids for k in order]
    return encoded, torch.tensor([float(lines[k][1]) for k in order], dtype=torch.float64)


@cache
def source(name: str) -> bytes:
    """A file of rated sentences, from a source package of a package registry, fetched once."""
    kept = CACHE / "vaderSentiment-0.5" / name
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory() as to:
            command = ("pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--no-build-isolation")
            # What it downloads, it tries to build, which fails with today's tools: the file is there all the same.
            subprocess.run([*command, "--dest", to, "vaderSentiment==0.5"], check=False, capture_output=True)
            packed = ZipFile(next(Path(to).glob("*.zip")))
        inner = packed.read("vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz")
        with tarfile.open(fileobj=BytesIO(inner)) as archive:
            member = archive.extractfile(f"hutto_ICWSM_2014/{name}")
            assert member is not None, name
            kept.write_bytes(member.read())
    return kept.read_bytes()


@cache
def regression(task: str) -> tuple[Tensor, Tensor]:
    """Coefficients and offset, fitted with the original, at the penalty of the least leave-one-out error."""
    encoded, ratings = rated(task)
    x, y = embedded(minilm(), encoded[:FITTED]).double(), ratings[:FITTED]
    centre, mean = x.mean(0), y.mean()
    u, s, vt = torch.linalg.svd(x - centre, full_matrices=False)
    shrunk = s**2 / (s**2 + PENALTIES[:, None])
    fitted = (shrunk * (u.T @ (y - mean))) @ u.T
    leverage = shrunk @ (u**2).T + 1 / len(y)
    best = int((((y - mean - fitted) / (1 - leverage)) ** 2).mean(1).argmin())
    coefficients = vt.T @ (s / (s**2 + PENALTIES[best]) * (u.T @ (y - mean)))
    return coefficients, mean - centre @ coefficients


def ratings_of(task: str, model: nn.Module) -> tuple[float, float]:
    """The correlation of what the regression foretells with how positive people find a sentence, likewise."""
    encoded, people = rated(task)
    (coefficients, offset), people = regression(task), people[FITTED:]

    def of(network: nn.Module) -> Callable[[Tensor], float]:
        foretold = embedded(network, encoded[FITTED:]).double() @ coefficients + offset
        return lambda texts: pearson(foretold[texts], people[texts])

    return beside(of(model), of(minilm()), len(people))


def judged(model: nn.Module) -> dict[str, float]:
    """All tasks, each with the spread of what it has more than the original."""
    found = {"similarities": similarities(model)} | {task: ratings_of(task, model) for task in RATED}
    return {
        name: round(number, 4)
        for task, (value, deviation) in found.items()
        for name, number in ((task, value), (f"{task}_spread", deviation))
    }


def measured(share: float, method: str) -> dict[str, Any]:
    """One row."""
    inputs, began = windows(TOKENS), time.process_time()
    model = METHODS[method](inputs, share)
    seconds = round(time.process_time() - began)
    return {"kept": share, "method": method, "cosine": round(cosine(model), 4), **judged(model), "cpu_seconds": seconds}


def original() -> dict[str, Any]:
    """The row of the network as it is."""
    return {"kept": 1.0, "method": "the original", "cosine": 1.0, **judged(minilm())}


def main() -> bool:
    """Measure what is not recorded; true if the claim holds."""
    rows = recorded("meaning") or [original()]
    known = {(row["kept"], row["method"]) for row in rows}
    for share in SHARES:
        for method in (*ALTERNATIVES, OURS, PLANNED):
            if (share, method) not in known:
                rows.append(measured(share, method))
                write("meaning", rows)
    return told(rows)


def told(rows: Iterable[dict[str, Any]]) -> bool:
    """Write the table; true if own nodes are at least as good as the best alternative wherever both are measured."""
    rows = sorted(rows, key=lambda row: (row["kept"], row["cosine"]))
    heads = ["kept", "method", "mean cosine", *TASKS, "CPU seconds"]
    whole = next(row for row in rows if row["kept"] == 1)
    lines = [
        [
            f"{row['kept']:.0%}",
            row["method"],
            f"{row['cosine']:.3f}",
            *(f"{row[task]:.3f} ({row[task] - whole[task]:+.3f} ± {row[f'{task}_spread']:.3f})" for task in TASKS),
            f"{row['cpu_seconds']:,}" if "cpu_seconds" in row else "",
        ]
        for row in rows
    ]
    insert("meaning", markdown(heads, lines), DOCS / "own-nodes.md")
    of = {(row["kept"], row["method"]): row for row in rows}
    return all(
        of[share, OURS][task] >= of[share, other][task]
        for share in SHARES
        for other in ALTERNATIVES
        for task in TASKS
        if (share, OURS) in of and (share, other) in of
    )


if __name__ == "__main__":
    asked = float(sys.argv[1]), " ".join(sys.argv[2:])
    rest = [row for row in recorded("meaning") or [original()] if (row["kept"], row["method"]) != asked]
    write("meaning", [*rest, measured(*asked)])
    print(told(recorded("meaning")))
