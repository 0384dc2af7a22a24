"""The colours and sizes of a page, light and dark, on a phone and on a wide screen."""

COLOURS = {"light": ("#0b5fa5", "#a33c00", "#1b7340", "#7a3fa0", "#8a6100", "#00707a", "#a5194f", "#55606b")}
COLOURS["dark"] = ("#6cb6ff", "#ff9d66", "#6fd08c", "#c99cf0", "#e3b341", "#5cd2dc", "#ff8fb3", "#a8b3bf")
"""Lines that are told from each other, and from the paper with a contrast of at least 4.5."""


def _coloured(name: str) -> str:
    lines = (f".c{k}{{stroke:{colour};--c:{colour}}}" for k, colour in enumerate(COLOURS[name]))
    return "".join(lines) + f".one{{stroke:{COLOURS[name][0]}}}"


STYLE = (
    ":root{color-scheme:light dark;--paper:#fff;--ink:#1c2127;--soft:#59636e;--rule:#d5dae0;--warm:#fff4e0;"
    "--edge:#8a6100;--bar:#ccd6e0}"
    "*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);"
    "font:16px/1.5 system-ui,sans-serif}main{max-width:68rem;margin:0 auto;padding:1rem}"
    "h1{font-size:1.6rem;line-height:1.25}h2{font-size:1.15rem;margin:2rem 0 .5rem}"
    ".wide{overflow-x:auto;margin:.75rem 0}table{border-collapse:collapse;font-variant-numeric:tabular-nums}"
    "th,td{padding:.3rem .8rem .3rem 0;text-align:right;border-bottom:1px solid var(--rule);white-space:nowrap}"
    "th:first-child,.words td,.words th{text-align:left}.told td:last-child,.told th:last-child{text-align:left}"
    ".words td,.told td:last-child{white-space:normal}.told td:last-child{min-width:14rem}"
    "thead th{color:var(--soft);font-weight:600}tbody th{font-weight:600}"
    ".warnings{background:var(--warm);border-left:4px solid var(--edge);padding:.6rem 1rem .6rem 2rem}"
    "pre{overflow-x:auto;white-space:pre-wrap;overflow-wrap:anywhere;padding:.6rem;"
    "border:1px solid var(--rule);border-radius:4px}"
    "svg{display:block;width:100%;height:auto}.chart{max-width:40rem;margin:.5rem 0}figure{margin:0}"
    ".nodes{display:grid;grid-template-columns:repeat(auto-fill,minmax(9rem,1fr));gap:1rem}"
    "figcaption{font-size:.75rem;color:var(--soft)}.line{fill:none;stroke-width:1.8}"
    ".dot{fill:var(--paper);stroke-width:1.8}"
    ".density rect{fill:var(--bar)}.grid{stroke:var(--rule);stroke-width:1}"
    ".tick,.label{fill:var(--soft);font-size:12px}"
    ".legend{list-style:none;display:flex;flex-wrap:wrap;gap:.3rem 1rem;padding:0;margin:.3rem 0;font-size:.85rem}"
    ".key{display:inline-block;width:1.2rem;height:.2rem;margin-right:.4rem;vertical-align:middle;background:var(--c)}"
    ".hidden{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}"
    f"{_coloured('light')}"
    "@media (prefers-color-scheme:dark){:root{--paper:#14181d;--ink:#e6eaee;--soft:#a2acb7;--rule:#343c45;"
    f"--warm:#33290f;--edge:#e3b341;--bar:#3a4653}}{_coloured('dark')}}}"
)
"""Everything that a page needs to look as it does."""
