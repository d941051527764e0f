"""One self-contained HTML page of sections.

It needs no network and no script, and holds its figures.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from experiments.inspect_run.context import PageFigure, Section
from jaxcnn import tables

SCROLL_ROWS = 24
"""Number of rows above which a table scrolls in a box."""
NUMBER = re.compile(r"[-−]?[\d.,]+(e[-+]?\d+)?( ± [\d.,]+)?%?|-")
"""Text of a table cell that is aligned to the right."""
ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
"""Reference to a paper, which becomes a link."""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Content security policy: nothing may be fetched or run.

It protects the reader from markup in a name on the page.
"""
PAGE_SCALE = 96 / 160
"""Page pixels for one pixel of a figure.

`plots.save` writes figures at 160 pixels per inch.
"""


def render_page(
    title: str, facts: Mapping[str, str], sections: Sequence[Section], files: Mapping[str, bytes]
) -> str:
    """Return the whole page as HTML.

    Args:
      title: of the page. It may hold any text, like all other strings, and is escaped.
      facts: label -> text, for the head of the page.
      sections: in the order of the page.
      files: name of a figure -> its PNG.

    Raises:
      KeyError: a figure has no file.
    """
    anchors = section_anchors([section.title for section in sections])
    # Figures are numbered through all sections.
    numbers = iter(range(1, 1 + sum(len(section.figures) for section in sections)))
    rendered = [
        _section_html(*item, files, numbers) for item in zip(anchors, sections, strict=True)
    ]
    contents = "".join(
        f'<li><a href="#{anchor}">{escape(section.title)}</a></li>'
        for anchor, section in zip(anchors, sections, strict=True)
    )
    definitions = "".join(
        f"<div><dt>{escape(label)}</dt><dd>{escape(text)}</dd></div>"
        for label, text in facts.items()
    )
    head = f"<h1>{escape(title)}</h1>\n<dl>{definitions}</dl>"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{CSS}</style>
</head>
<body>
<header>
{head}
</header>
<nav aria-label="Contents"><ol>{contents}</ol></nav>
<main>
{"".join(rendered)}</main>
</body>
</html>
"""


def section_anchors(titles: Sequence[str]) -> list[str]:
    """Return anchors to link to, all different.

    Example:
      >>> section_anchors(["Your image", "<b>", "Your image"])
      ['1-your-image', '2-b', '3-your-image']
    """
    slugs = [re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") for title in titles]
    return [f"{i}-{slug}".rstrip("-") for i, slug in enumerate(slugs, 1)]


def _section_html(anchor: str, section: Section, files: Mapping[str, bytes], numbers: Any) -> str:
    """Return one section; `numbers` counts the figures of the page."""
    figures = "".join(
        _figure_html(figure, files[figure.name], next(numbers)) for figure in section.figures
    )
    body = (
        paragraphs_html(section.text)
        + (table_html(section.table, section.title) if section.table else "")
        + figures
    )
    return f'<section id="{anchor}">\n<h2>{escape(section.title)}</h2>\n{body}</section>\n'


def paragraphs_html(text: str) -> str:
    r"""Return plain text as paragraphs, with links to the papers it names.

    A blank line separates paragraphs.

    Example:
      >>> paragraphs_html("a < b")
      '<p>a &lt; b</p>\n'
    """
    return "".join(
        f"<p>{_text_html(paragraph)}</p>\n"
        for paragraph in re.split(r"\n\s*\n", text.strip())
        if paragraph
    )


def _text_html(text: str) -> str:
    """Return plain text on one line, escaped, with links to arXiv."""
    return ARXIV.sub(
        r'<a href="https://arxiv.org/abs/\1">arXiv:\1</a>', escape(" ".join(text.split()))
    )


def _figure_html(figure: PageFigure, png: bytes, number: int) -> str:
    """Return a figure and its caption.

    It has its natural size, or the width of the page if that is less.
    """
    # Bytes 16 to 23 of a PNG are its width and height.
    width, height = (
        round(PAGE_SCALE * int.from_bytes(png[offset : offset + 4], "big")) for offset in (16, 20)
    )
    # Embedded images keep the page a single file.
    data = base64.b64encode(png).decode()
    size = f'width="{width}" height="{height}"'
    image = f'<img src="data:image/png;base64,{data}" alt="{escape(figure.alt)}" {size}>'
    caption = (
        f"<figcaption><b>Figure {number}.</b> {_text_html(figure.caption)} "
        f"<i>{escape(figure.name)}.png</i></figcaption>"
    )
    return f'<figure id="figure-{number}">\n{image}\n{caption}\n</figure>\n'


def table_html(rows: Sequence[Mapping[str, Any]], title: str) -> str:
    """Return a table of `tables.compact` rows, with numbers aligned to the right.

    A table of many rows scrolls.
    """
    compact = [tables.compact(row) for row in rows]
    columns = list(dict.fromkeys(name for row in compact for name in row))
    numeric = {
        name for name in columns if all(NUMBER.fullmatch(row.get(name, "-")) for row in compact)
    }
    css_class = {name: ' class="number"' if name in numeric else "" for name in columns}
    head = "".join(f'<th scope="col"{css_class[name]}>{escape(name)}</th>' for name in columns)
    cells = [
        "".join(f"<td{css_class[name]}>{_cell_html(row.get(name, '-'))}</td>" for name in columns)
        for row in compact
    ]
    body = "".join(f"<tr>{line}</tr>\n" for line in cells)
    box_class = "box long" if len(rows) > SCROLL_ROWS else "box"
    label = f'role="region" aria-label="Table: {escape(title)}" tabindex="0"'
    table = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>"
    return f'<div class="{box_class}" {label}>\n{table}\n</div>\n'


def _cell_html(text: str) -> str:
    """Return the text of a cell; a lone hyphen becomes a dash."""
    return "–" if text == "-" else escape(text)


CSS = """
:root { color-scheme: light dark; --ink: #1b1b1b; --soft: #595959; --line: #d8d8d8;
  --ground: #ffffff; --box: #f6f6f4;
  --link: #0b57a4; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e6e1; --soft: #aaa69e; --line: #3f3f3d; --ground: #191918; --box: #232322;
    --link: #86b9ee; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 5rem; max-width: 66rem; background: var(--ground);
  color: var(--ink);
  font: 1.0625rem/1.55 Charter, "Bitstream Charter", "Source Serif 4", Cambria, Georgia, serif; }
h1 { margin: 0 0 1rem; font-size: 2rem; line-height: 1.2; font-weight: 600;
  overflow-wrap: anywhere; }
h2 { margin: 3rem 0 .75rem; padding-top: 1.25rem; border-top: 1px solid var(--line);
  font-size: 1.4rem; font-weight: 600; }
p { margin: .6rem 0; max-width: 46rem; overflow-wrap: anywhere; }
a { color: var(--link); text-decoration-thickness: 1px; text-underline-offset: .15em; }
dl { margin: 0; padding: .75rem 1rem; background: var(--box); border-radius: 6px;
  font-size: .95rem; }
dl div { display: grid; grid-template-columns: 7.5rem 1fr; gap: 1rem; padding: .1rem 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
nav ol { margin: 1.25rem 0 0; padding: 0; list-style: none; display: flex; flex-wrap: wrap;
  gap: .3rem 1.5rem;
  counter-reset: part; font-size: .95rem; }
nav li { counter-increment: part; }
nav li::before { content: counter(part) ". "; color: var(--soft); }
.box { margin: 1rem 0; overflow-x: auto; }
.long { max-height: 26rem; overflow-y: auto; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; font-size: .9rem; line-height: 1.35;
  font-variant-numeric: tabular-nums lining-nums; }
.long table { min-width: 100%; }
th, td { padding: .3rem .9rem .3rem .6rem; text-align: left; vertical-align: top; }
th { position: sticky; top: 0; background: var(--ground); color: var(--soft); font-weight: 600;
  box-shadow: inset 0 -1px var(--line); }
tbody tr + tr td { border-top: 1px solid color-mix(in srgb, var(--line) 55%, transparent); }
.number { text-align: right; white-space: nowrap; }
figure { margin: 2rem 0; }
img { display: block; max-width: 100%; height: auto; background: #ffffff; }
figcaption { margin-top: .5rem; max-width: 46rem; font-size: .95rem; line-height: 1.45; }
figcaption i { color: var(--soft); font-size: .85rem; white-space: nowrap; }
@media (prefers-color-scheme: dark) { img { padding: .5rem; border-radius: 6px; } }
@media (max-width: 40rem) { dl div { grid-template-columns: 1fr; gap: 0; padding: .25rem 0; } }
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  .long { max-height: none; overflow: visible; border: 0; }
  th { position: static; }
  h2, figcaption { break-after: auto; }
  h2 { break-after: avoid; }
  figure, tr { break-inside: avoid; }
  img { max-height: 22cm; width: auto; }
}
"""
"""Style sheet: like a paper's, in light and dark, and in print."""
