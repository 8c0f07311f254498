"""The page of `tests.bench.attacks`: what an attacker sees, in one HTML file that loads and runs nothing."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tests.fl_agent.attacks.inversion import Picture

#: Columns of the pictures: key, heading, what it is.
COLUMNS = (
    ("film", "The film", "what the hospital holds"),
    ("plain", "Plain update", "found in the gradient of this film"),
    ("plain_of_four", "Plain, four films", "found in the mean gradient of four"),
    ("clipped", "Clipped", "no noise: clipping hides nothing"),
    ("noised", "What leaves, mode site", "clipped and noised, ε = 8 in one step"),
    ("masked", "What leaves, masked", "as courier and coordinator see it"),
)
FIRST_LAYER = (
    ("film", "The film", "what the hospital holds"),
    ("plain_first_layer", "Plain update", "read off, no search"),
    ("clipped_first_layer", "Clipped", "no noise"),
    ("noised_first_layer", "What leaves, mode site", "clipped and noised, ε = 8 in one step"),
    ("masked_first_layer", "What leaves, masked", "as courier and coordinator see it"),
)
AUDITS = {
    "descent": "DP-SGD, all patients in each step",
    "lottery": "DP-SGD, a quarter drawn for each step",
    "head": "the head as it is shipped, from its weights alone",
    "sums": "secure sums, distributed noise; the coordinator and one hospital of three attack",
}
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #16262d; margin: 2rem auto; max-width: 62rem; padding: 0 1rem }
h1, h2 { line-height: 1.2 } h2 { margin-top: 2.5rem }
.scroll { overflow-x: auto } table { border-collapse: collapse }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #dde5e8; vertical-align: top }
td.number { text-align: right; font-variant-numeric: tabular-nums } small { color: #4d6069; font-weight: normal }
img { width: 128px; height: 128px; image-rendering: pixelated; display: block; background: #000 }
"""


@dataclass(frozen=True)
class Row:
    """One film.

    Attributes
    ----------
    pictures : mapping of str to ndarray
        By the keys of the columns; 0..1.
    figures : mapping of str to (float, int)
        Similarity to the film, and its rank in the gallery.
    """

    pictures: Mapping[str, Picture]
    figures: Mapping[str, tuple[float, int]]


def page(figures: Mapping[str, float], rows: Sequence[Row]) -> str:
    """Write the page."""
    return "\n".join(_parts(figures, rows))


def _parts(figures: Mapping[str, float], rows: Sequence[Row]) -> Iterator[str]:
    yield f"<!doctype html><html lang=en><meta charset=utf-8><title>Attacks on training</title><style>{STYLE}</style>"
    yield "<h1>Attacks on training</h1><p>Each attack is run where it succeeds and against what VeilRay does."
    yield "<h2>Films from a hospital's update</h2>"
    gallery = f"{figures['inversion_gallery']:.0f}"
    yield (
        "<p>The attacker knows the network, its weights and the labels, and searches for the film whose gradient is "
        "the update (Geiping et al. 2020). Below each picture: structural similarity to the film (1 is the same), and "
        f"the film's rank among {gallery} by likeness to what was found."
    )
    yield from _pictures(COLUMNS, rows)
    yield "<p>Where a network's first layer sees the whole film, its gradient is the film, and no search is needed:"
    yield from _pictures(FIRST_LAYER, rows)
    if "inversion_head_gallery" in figures:
        yield (
            "<p>By default a head on public features is trained. Of one patient's plain gradient the features follow, "
            f"and so which of {figures['inversion_head_gallery']:.0f} films it was. Median rank of the right one:"
        )
        ways = ("plain", "clipped", "noised", "masked")
        yield from _table(ways, [[f"{figures[f'inversion_head_{way}_rank']:.0f}" for way in ways]])
    yield "<h2>Privacy as measured</h2>"
    yield (
        f"<p>ε that an attacker with canaries refutes at {100 * figures['audit_confidence']:.0f} % confidence, "
        f"δ = {figures['audit_delta']:g} (Steinke, Nasr, Jagielski 2023). With its noise it stays below the claim; "
        "without, it is above."
    )
    yield from _table(
        ("what", "claimed ε", "refuted, as it is", "with half the noise", "without noise"), list(_audited(figures))
    )
    if "membership_patients" in figures:
        yield "<h2>Who was in the training</h2>"
        yield (
            "<p>LiRA (Carlini et al. 2022) with "
            f"{figures['membership_shadows']:.0f} shadow heads, {figures['membership_patients']:.0f} patients, half of "
            "whom trained a head on real features. An area of 0.5 is guessing."
        )
        names = {"plain": "no privacy", "eps8": "ε = 8", "eps3": "ε = 3", "eps1": "ε = 1"}
        keys = ("auc", "caught_at_1_percent", "lower")
        yield from _table(
            ("training", "area under the curve", "members caught at 1 % false alarms", "refuted ε"),
            [[what, *(f"{figures[f'membership_{name}_{key}']:.3f}" for key in keys)] for name, what in names.items()],
        )
    yield "</html>"


def _audited(figures: Mapping[str, float]) -> Iterator[list[str]]:
    for kind, what in AUDITS.items():
        claims = [name for name in figures if name.startswith(f"audit_{kind}_") and name.endswith("_claimed")]
        for name in sorted(claims, key=lambda one: figures[one]):
            stem = name.removesuffix("claimed")
            values = [figures.get(stem + key) for key in ("claimed", "lower", "lower_noise_half", "lower_noise_off")]
            yield [what, *("" if value is None else f"{value:.2f}" for value in values)]


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "<div class=scroll><table><tr>" + "".join(f"<th>{html.escape(one)}" for one in heads)
    for line in lines:
        cells = [f"<td{' class=number' if one[:1].isdigit() else ''}>{html.escape(one)}" for one in line]
        yield "<tr>" + "".join(cells)
    yield "</table></div>"


def _pictures(columns: Sequence[tuple[str, str, str]], rows: Sequence[Row]) -> Iterator[str]:
    heads = (f"<th>{html.escape(head)}<br><small>{html.escape(about)}</small>" for _, head, about in columns)
    yield "<div class=scroll><table><tr>" + "".join(heads)
    for row in rows:
        yield "<tr>"
        for key, head, _ in columns:
            told = ""
            if key in row.figures:
                similarity, place = row.figures[key]
                told = f"<small>{similarity:.2f}, rank {place}</small>"
            yield f'<td><img alt="{html.escape(head)}" src="{_source(row.pictures[key])}">{told}'
    yield "</table></div>"


def _source(picture: Picture) -> str:
    room = io.BytesIO()
    Image.fromarray(np.rint(255 * np.clip(picture, 0, 1)).astype(np.uint8)).save(room, "PNG")
    return "data:image/png;base64," + base64.b64encode(room.getvalue()).decode()
