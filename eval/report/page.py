"""The page of a report: one HTML file with its pictures inside, no script, nothing loaded from anywhere.

Everything that comes from outside goes through ``html.escape``.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from eval.report.figures import FacePair, png_bytes

# A browser that obeys this loads nothing and runs nothing, whatever a name in the report may hold.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

_STYLE = """
:root { color-scheme: light dark; --page: #f5f6f7; --card: #fff; --ink: #1b2126; --soft: #59636c; --line: #dde1e5;
  --accent: #1f5f99; --bad: #b3261e; --note: #fff5dc; --note-line: #e2b94d; }
@media (prefers-color-scheme: dark) {
  :root { --page: #0e0e0e; --card: #171717; --ink: #e8e8e8; --soft: #a2a8ad; --line: #313131;
    --accent: #7fb5e6; --bad: #ff8a80; --note: #2b2411; --note-line: #8a6d1f; }
  .chart img { filter: invert(.91) hue-rotate(180deg); }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.5;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 2.2rem 1.4rem 3rem; }
h1 { font-size: 1.9rem; line-height: 1.2; letter-spacing: -.01em; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.4rem; margin: 2.8rem 0 .3rem; overflow-wrap: anywhere; }
h3 { font-size: 1.05rem; margin: 0 0 .5rem; }
p { margin: .35rem 0; max-width: 50rem; }
.soft, figcaption, .small { color: var(--soft); }
.small, figcaption { font-size: .875rem; }
.card p { max-width: 62rem; }
a { color: var(--accent); }
nav a { margin-right: 1.1rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: .8rem; margin: 1.1rem 0;
  padding: 0; list-style: none; }
.tiles li, .card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.tiles li { padding: .7rem .95rem; }
.tiles span { display: block; color: var(--soft); font-size: .82rem; }
.tiles strong { font-size: 1.35rem; font-weight: 600; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.note { background: var(--note); border-left: 4px solid var(--note-line); border-radius: 4px; padding: .55rem .9rem;
  margin: .8rem 0; max-width: none; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 430px), 1fr)); gap: 1rem;
  margin: 1rem 0; }
.card { padding: 1rem 1.1rem; margin: 0; min-width: 0; }
.charts .chart:only-child img { max-width: 720px; margin: 0 auto; }
.charts .wide { grid-column: 1 / -1; }
.chart img { display: block; width: 100%; height: auto; }
.chart figcaption { margin-top: .5rem; }
section > .card { margin: 1rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .94rem; }
th, td { padding: .42rem .9rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th { font-weight: 600; color: var(--soft); font-size: .85rem; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td { white-space: nowrap; }
tbody tr:last-child > * { border-bottom: 0; }
.facts { width: 100%; }
.facts th { width: 11rem; white-space: nowrap; }
.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.faces { display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 1.1rem 1rem;
  margin: 1rem 0 0; }
.pair { margin: 0; }
.pair img { display: block; width: 100%; max-width: 228px; height: auto; border-radius: 6px; }
.pair figcaption { line-height: 1.35; margin-top: .35rem; overflow-wrap: anywhere; }
.pair strong { color: var(--ink); font-variant-numeric: tabular-nums; }
.wrong strong, .wrong em { color: var(--bad); }
.pair em { font-style: normal; }
pre { overflow-x: auto; margin: .6rem 0 0;
  font: .82rem/1.35 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
summary { cursor: pointer; }
dd { margin: 0 0 .7rem; color: var(--soft); }
dd:last-child { margin: 0; }
@media print { body { background: #fff; } .card, .tiles li, .pair { break-inside: avoid; } }
"""


@dataclass(frozen=True)
class Tile:
    """One number at the head of a section."""

    label: str
    value: str


@dataclass(frozen=True)
class Table:
    """A table of text; the first column names the row."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """One chart."""

    kind: str  # the ending of its file's name
    png: bytes
    alt: str
    caption: str
    wide: bool = False  # takes the page's whole width


@dataclass(frozen=True)
class FaceSheet:
    """The worst pairs of one kind."""

    title: str
    text: str
    pairs: Sequence[FacePair]
    id_word: str
    verdict: str  # of a pair on the wrong side: "accepted" or "refused"


@dataclass(frozen=True)
class PageSection:
    """One set, ready to be shown."""

    name: str
    mode: str
    tiles: Sequence[Tile]
    notes: Sequence[str]
    pictures: Sequence[Picture]
    tables: Sequence[Table]
    face_sheets: Sequence[FaceSheet]


def render_page(
    title: str,
    sections: Sequence[PageSection],
    facts: Mapping[str, str],
    printed: str = "",
    terms: Sequence[tuple[str, str]] = (),
) -> str:
    """Write the page.

    Args:
        title: its heading.
        sections: in order.
        facts: what was evaluated, where and with what.
        printed: what the command printed, folded away; "" for nothing.
        terms: words that the page uses, and what they mean.
    """
    links = ""
    if len(sections) > 1:
        anchors = (f'<a href="#set-{i}">{escape(section.name)}</a>' for i, section in enumerate(sections))
        links = f'<nav aria-label="Sets">{"".join(anchors)}</nav>'
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<header>
<p class="soft">Face recognition, evaluation report</p>
<h1>{escape(title)}</h1>
{links}
</header>
{"".join(_section(i, section) for i, section in enumerate(sections))}
<section>
<h2>What was evaluated</h2>
<div class="card scroll">{_facts(facts)}</div>
{_details("The tables as printed", printed) if printed else ""}
</section>
<section>
<h2>How to read this</h2>
{_legend(terms)}
</section>
</main>
</body>
</html>
"""


def _section(number: int, section: PageSection) -> str:
    parts = [f'<section id="set-{number}">\n<h2>{escape(section.name)}</h2>\n']
    if section.mode:
        parts.append(f'<p class="soft">{escape(section.mode)}</p>\n')
    if section.tiles:
        items = (
            f"<li><span>{escape(tile.label)}</span><strong>{escape(tile.value)}</strong></li>"
            for tile in section.tiles
        )
        parts.append(f'<ul class="tiles">{"".join(items)}</ul>\n')
    parts += [f'<p class="note">{escape(note)}</p>\n' for note in section.notes]
    if section.pictures:
        parts.append(f'<div class="charts">{"".join(map(_chart, section.pictures))}</div>\n')
    parts += [_table(table) for table in section.tables]
    parts += [_faces(sheet) for sheet in section.face_sheets if sheet.pairs]
    return "".join([*parts, "</section>\n"])


def _image(png: bytes, alt: str) -> str:
    return f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}" alt="{escape(alt)}">'


def _chart(picture: Picture) -> str:
    wide = " wide" if picture.wide else ""
    return (
        f'<figure class="card chart{wide}">{_image(picture.png, picture.alt)}'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>\n"
    )


def _cells(tag: str, values: Iterable[str], scope: str = "") -> str:
    return "".join(f"<{tag}{scope}>{escape(value)}</{tag}>" for value in values)


def _table(table: Table) -> str:
    head = _cells("th", table.header, ' scope="col"')
    body = "\n".join(f"<tr>{_cells('td', row)}</tr>" for row in table.rows)
    note = f'<p class="small">{escape(table.note)}</p>' if table.note else ""
    return (
        f'<div class="card"><h3>{escape(table.title)}</h3><div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{note}</div>\n"
    )


def _faces(sheet: FaceSheet) -> str:
    figures = "".join(_face_pair(pair, sheet.id_word, sheet.verdict) for pair in sheet.pairs)
    return (
        f'<div class="card"><h3>Worst {escape(sheet.title)}</h3><p class="small">{escape(sheet.text)}</p>'
        f'<div class="faces">{figures}</div></div>\n'
    )


def _face_pair(pair: FacePair, id_word: str, verdict: str) -> str:
    ids = f"{id_word}s {pair.first} and {pair.second}"
    said = f" <em>{escape(verdict)}</em>" if pair.wrong else ""
    return (
        f'<figure class="pair{" wrong" if pair.wrong else ""}">'
        f"{_image(png_bytes(pair.image), f'Faces of {ids}')}"
        f"<figcaption><strong>{pair.score:.4f}</strong>{said}<br>{escape(ids)}</figcaption></figure>\n"
    )


def _facts(facts: Mapping[str, str]) -> str:
    rows = "\n".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in facts.items()
    )
    return f'<table class="facts"><tbody>{rows}</tbody></table>'


def _details(summary: str, text: str) -> str:
    return f'<details class="card"><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>'


PAIR_TERMS = (
    ("Genuine, impostor", "A pair of one person, a pair of two persons."),
    (
        "FAR, TAR",
        "The shares of impostor and of genuine pairs whose score is above a threshold. A FAR is resolved when it is "
        "at least one impostor pair.",
    ),
    ("Equal error rate", "The mean of FAR and 1 - TAR where the two are nearest to each other."),
    (
        "Worst pairs",
        "Numbers under the faces are those of the lists; a template of several images is shown by the one of highest "
        "detector score. Look at high impostor and low genuine pairs: some may have the wrong label.",
    ),
)
SEARCH_TERMS = (
    (
        "Gallery, probe, mate",
        "Enrolled faces, a face to search for, and a template of the same person in the gallery.",
    ),
    ("Rank-r", "The share of probes with a mate whose mate is among the r most similar templates."),
    (
        "Mean average precision",
        "The area under precision over recall, as a probe's mates turn up in order of similarity; its mean over the "
        "probes with a mate.",
    ),
    (
        "FPIR, TPIR",
        "The share of probes without a mate that find somebody above a threshold, and the share of those with a mate "
        "that find it first and above the threshold.",
    ),
)
INTERVAL_TERM = (
    "95 % interval",
    "What 95 % of draws of other people would show. There is none (-) where the test is too small to tell.",
)


def _legend(terms: Sequence[tuple[str, str]]) -> str:
    entries = "\n".join(f"<dt><strong>{escape(term)}</strong></dt>\n<dd>{escape(text)}</dd>" for term, text in terms)
    return f'<dl class="card">\n{entries}\n</dl>\n'
