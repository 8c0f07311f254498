"""The report of a run as one HTML file that loads nothing (HTML Living Standard; pictures as data URLs, RFC 2397)."""

from __future__ import annotations

import base64
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from . import wording
from .charts import charts
from .record import RunRecord


def render(run: RunRecord) -> str:
    """Write the report; it can be kept, mailed and printed as it is."""
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(
        size=wording.size, span=wording.span, moment=wording.moment, number=wording.number, metric=wording.metric
    )
    pictures = [
        (one.title, one.about, f"data:image/svg+xml;base64,{base64.b64encode(one.svg.encode()).decode()}")
        for one in charts(run)
    ]
    newest = run.rounds[-1] if run.rounds else None
    return templates.get_template("report.html").render(
        run=run,
        newest=newest,
        totals=wording.totals(run),
        state=wording.state(run),
        mode=wording.MODES[run.mode],
        consequence=wording.CONSEQUENCES[run.mode],
        notice=wording.NOTICE,
        metrics=wording.metrics(run),
        pictures=pictures,
    )
