"""Sections as one HTML page that needs nothing else: no network, no script, its figures inside."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from experiments.inspect_run.seen import Picture, Section
from experiments.inspect_run.sheet import CSS
from jaxcnn import tables

LONG = 24
"""Rows above which a table scrolls in a box."""
NUMBER = re.compile(r"[-−]?[\d.,]+(e[-+]?\d+)?( ± [\d.,]+)?%?|-")
PAPER = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Forbids the browser to fetch or run anything, should a name on the page ask for it."""
PIXELS = 96 / 160
"""Of the page for one of a figure's, which `plots.save` writes at 160 an inch."""


def page(title: str, facts: Mapping[str, str], sections: Sequence[Section], files: Mapping[str, bytes]) -> str:
    """The whole page.

    Args:
      title: of the page; like all other words it may hold anything, and is escaped.
      facts: what -> words, for the head of the page.
      sections: from above.
      files: a picture's name -> its PNG.

    Raises:
      KeyError: for a picture without its file.
    """
    names = anchors([section.title for section in sections])
    numbers = iter(range(1, 1 + sum(len(section.pictures) for section in sections)))
    bodies = [written(*pair, files, numbers) for pair in zip(names, sections, strict=True)]
    contents = "".join(f'<li><a href="#{n}">{escape(s.title)}</a></li>' for n, s in zip(names, sections, strict=True))
    known = "".join(f"<div><dt>{escape(what)}</dt><dd>{escape(words)}</dd></div>" for what, words in facts.items())
    head = f"<h1>{escape(title)}</h1>\n<dl>{known}</dl>"
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
{"".join(bodies)}</main>
</body>
</html>
"""


def anchors(titles: Sequence[str]) -> list[str]:
    """Names to link to, all different.

    Example:
      >>> anchors(["Your picture", "<b>", "Your picture"])
      ['1-your-picture', '2-b', '3-your-picture']
    """
    plain = [re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") for title in titles]
    return [f"{i}-{name}".rstrip("-") for i, name in enumerate(plain, 1)]


def written(name: str, section: Section, files: Mapping[str, bytes], numbers: Any) -> str:
    """One section; `numbers` counts the figures of the page."""
    figures = "".join(figure(picture, files[picture.name], next(numbers)) for picture in section.pictures)
    body = paragraphs(section.text) + (table(section.table, section.title) if section.table else "") + figures
    return f'<section id="{name}">\n<h2>{escape(section.title)}</h2>\n{body}</section>\n'


def paragraphs(text: str) -> str:
    """Plain text, a blank line between paragraphs, with links to the papers it names.

    Example:
      >>> paragraphs("a < b")
      '<p>a &lt; b</p>\\n'
    """
    return "".join(f"<p>{words(part)}</p>\n" for part in re.split(r"\n\s*\n", text.strip()) if part)


def words(text: str) -> str:
    """Plain text on one line, escaped, with links to arXiv."""
    return PAPER.sub(r'<a href="https://arxiv.org/abs/\1">arXiv:\1</a>', escape(" ".join(text.split())))


def figure(picture: Picture, png: bytes, number: int) -> str:
    """A figure at its natural size, or the page's width if that is less, with its words below."""
    width, height = (round(PIXELS * int.from_bytes(png[at : at + 4], "big")) for at in (16, 20))  # of PNG's header
    data = base64.b64encode(png).decode()
    size = f'width="{width}" height="{height}"'
    image = f'<img src="data:image/png;base64,{data}" alt="{escape(picture.alt)}" {size}>'
    caption = (
        f"<figcaption><b>Figure {number}.</b> {words(picture.text)} <i>{escape(picture.name)}.png</i></figcaption>"
    )
    return f'<figure id="figure-{number}">\n{image}\n{caption}\n</figure>\n'


def table(rows: Sequence[Mapping[str, Any]], title: str) -> str:
    """The rows as `tables.compact` shortens them, columns of numbers to the right; many rows scroll in a box."""
    short = [tables.compact(row) for row in rows]
    columns = list(dict.fromkeys(name for row in short for name in row))
    right = {name for name in columns if all(NUMBER.fullmatch(row.get(name, "-")) for row in short)}
    kind = {name: ' class="number"' if name in right else "" for name in columns}
    head = "".join(f'<th scope="col"{kind[name]}>{escape(name)}</th>' for name in columns)
    cells = ["".join(f"<td{kind[name]}>{cell(row.get(name, '-'))}</td>" for name in columns) for row in short]
    body = "".join(f"<tr>{line}</tr>\n" for line in cells)
    box = "box long" if len(rows) > LONG else "box"
    label = f'role="region" aria-label="Table: {escape(title)}" tabindex="0"'
    made = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>"
    return f'<div class="{box}" {label}>\n{made}\n</div>\n'


def cell(text: str) -> str:
    """What a cell shows; a lone hyphen is a dash."""
    return "–" if text == "-" else escape(text)
