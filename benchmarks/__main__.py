"""`python -m benchmarks [NAME ...]`: measure the claims; exit code 1 if one does not hold."""

from __future__ import annotations

import sys

from benchmarks import (
    attention,
    bodies,
    budget,
    characters,
    circuits,
    compare,
    compression,
    convolutions,
    decoder,
    demo,
    device,
    duffing,
    ends,
    few,
    finetune,
    gpu,
    hot,
    layers,
    meaning,
    modes,
    narx,
    noise,
    pages,
    peers,
    processes,
    published,
    recovery,
    reductions,
    refinement,
    rule,
    samples,
    scaling,
    streaming,
    terms,
    transformers,
    two_layers,
    views,
    wide,
)

ALL = {
    "demo": demo.main,
    "compression": compression.main,
    "convolutions": convolutions.main,
    "published": published.main,
    "recovery": recovery.main,
    "noise": noise.main,
    "ends": ends.main,
    "terms": terms.main,
    "scaling": scaling.main,
    "hot": hot.main,
    "streaming": streaming.main,
    "pages": pages.main,
    "processes": processes.main,
    "two_layers": two_layers.main,
    "layers": layers.main,
    "reductions": reductions.main,
    "few": few.main,
    "modes": modes.main,
    "decoder": decoder.main,
    "transformers": transformers.main,
    "meaning": meaning.main,
    "bodies": bodies.main,
    "attention": attention.main,
    "budget": budget.main,
    "finetune": finetune.main,
    "samples": samples.main,
    "device": device.main,
    "duffing": duffing.main,
    "narx": narx.main,
    "characters": characters.main,
    "circuits": circuits.main,
    "compare": compare.main,
    "peers": peers.main,
    "views": views.main,
    "rule": rule.main,
    "refinement": refinement.main,
    "gpu": gpu.main,
    "wide": wide.main,
}
VERDICTS = {True: "holds", False: "DOES NOT HOLD", None: "SKIPPED"}

if __name__ == "__main__":
    names = sys.argv[1:] or list(ALL)
    unknown = [name for name in names if name not in ALL]
    if unknown:
        sys.exit(f"no benchmark is called {unknown[0]!r}: choose from {', '.join(ALL)}")
    held = {name: ALL[name]() for name in names}
    for name, holds in held.items():
        print(f"{name}: {VERDICTS[holds]}")
    sys.exit(1 if False in held.values() else 0)
