"""What asking the system for fresh memory costs networks on large images, and what keeping it saves (Linux, glibc).

Tensors of many megabytes are taken from the system and given back, and every first touch of a page clears it. Two
variables of the environment make the allocator keep them. The same passes of EfficientNet-Lite0 without and with them,
in turns, one thread. The claim: with them a pass takes at most `MOST` of the time.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

from benchmarks.record import DOCS, insert, markdown, write

KEPT = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}
MOST, TURNS, IMAGES = 0.7, 3, 32

CHILD = f"""
import os, time
import torch
from benchmarks.photos import SIZE, efficientnet
torch.set_num_threads(1)
model, images = efficientnet(), torch.randn({IMAGES}, 3, SIZE, SIZE)
with torch.inference_mode():
    model(images)
    began, before = time.perf_counter(), os.times()
    model(images)
    after = os.times()
    print(time.perf_counter() - began, after.user - before.user, after.system - before.system)
"""


def passed(kept: bool) -> tuple[float, ...]:
    """Seconds of a pass, those of the processor and those of the system."""
    environment = {name: value for name, value in os.environ.items() if name not in KEPT} | (KEPT if kept else {})
    command = [sys.executable, "-c", CHILD]
    told = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    return tuple(map(float, told.split()))


def main() -> bool:
    """Measure in turns; true if the claim holds."""
    found: dict[bool, list[tuple[float, ...]]] = {False: [], True: []}
    for _ in range(TURNS):
        for kept, times in found.items():
            times.append(passed(kept))
    rows = [
        {"kept": kept, "seconds": seconds, "user": user, "system": system}
        for kept, times in found.items()
        for seconds, user, system in times
    ]
    ratio = statistics.median(row["seconds"] for row in rows if row["kept"]) / statistics.median(
        row["seconds"] for row in rows if not row["kept"]
    )
    write("pages", rows, ratio=round(ratio, 2))
    lines = [
        [
            "kept" if kept else "as it is",
            *(
                ", ".join(f"{row[name]:.1f}" for row in rows if row["kept"] == kept)
                for name in ("seconds", "user", "system")
            ),
        ]
        for kept in found
    ]
    insert("pages", markdown(["memory", "seconds of a pass", "of them user", "system"], lines), DOCS / "scaling.md")
    return ratio <= MOST
