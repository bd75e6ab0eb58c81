"""One page in one file: the figures, Plotly itself, tables. Nothing is fetched when it is opened."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from cga_lightning.cli.extras import tools
from cga_lightning.cli.page.figures import Figure, Missing, Part

PAGE = Path(__file__).with_name("page.html")


def page(title: str, parts: Sequence[Part], tables: Mapping[str, Sequence[Sequence[Any]]]) -> str:
    """The page.

    Args:
        title: of the page.
        parts: its figures, and what is missing, in order.
        tables: by their titles; the first row of each is its head.
    """
    with tools("cga-lightning report"):
        from plotly.offline import get_plotlyjs
    figures = [part for part in parts if isinstance(part, Figure)]
    numbers = {id(figure): number for number, figure in enumerate(figures)}
    missing = [part for part in parts if isinstance(part, Missing)]
    return Template(PAGE.read_text()).substitute(
        title=html.escape(title),
        plotly=get_plotlyjs(),
        sections="\n".join(_section(figure, numbers[id(figure)]) for figure in figures),
        missing="\n".join(f"<li><b>{html.escape(m.title)}.</b> {html.escape(m.why)}</li>" for m in missing),
        hidden="" if missing else "hidden",
        tables="\n".join(_table(name, rows) for name, rows in tables.items()),
        figures=_json([{"data": figure.data, "layout": figure.layout} for figure in figures]),
    )


def _section(figure: Figure, number: int) -> str:
    note = f"<p>{html.escape(figure.note)}</p>" if figure.note else ""
    heading = html.escape(figure.title)
    plot = f'<div class="plot" id="plot-{number}" role="img" aria-label="{heading}"></div>'
    return f"<section><h2>{heading}</h2>{plot}{note}</section>"


def _table(title: str, rows: Sequence[Sequence[Any]]) -> str:
    head, *body = ([html.escape(str(cell)) for cell in row] for row in rows)
    lines = ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in body]
    top = "<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>"
    inner = f"<table><thead>{top}</thead><tbody>{''.join(lines)}</tbody></table>"
    return f'<section class="wide"><h2>{html.escape(title)}</h2><div class="scroll">{inner}</div></section>'


def _json(value: Any) -> str:
    """Inside a script element nothing may look like its end."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")
