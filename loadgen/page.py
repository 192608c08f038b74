"""The frame of the HTML pages: one file without assets or scripts, for light and dark mode. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from html import escape
from typing import NamedTuple

_STYLE = """
:root{color-scheme:light dark;--page:#fff;--ink:#1b1f24;--soft:#59636e;--rule:#d5dae0;--b0:#eef1f5;
  --b1:#f8f9fb; --warn:#fff1d6;--good:#1a7f37;--bad:#b42318;--doubt:#8a5300;
  --c0:#0069a8;--c1:#c24e00;--c2:#00805d;--c3:#b0508a;--c4:#7d6300;
  --c5:#2f8fd0;--c6:#5d3a9b;--c7:#6b6b6b}
@media(prefers-color-scheme:dark){:root{--page:#14171b;--ink:#e6e9ed;--soft:#9aa5b1;--rule:#363d46;
  --b0:#20262d; --b1:#191d22;--warn:#4a3710;--good:#4cc26a;--bad:#ff8f80;--doubt:#e8b04a;
  --c0:#62b5ee;--c1:#f2905a;--c2:#3ccb9f;--c3:#eaa2cb;
  --c4:#e3c64c;--c5:#9bd8ff;--c6:#b79bea; --c7:#b5b5b5}
}
*{box-sizing:border-box}
body{margin:0 auto;padding:1rem;max-width:1240px;background:var(--page);color:var(--ink);
  font:16px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.5rem;line-height:1.25;margin:.2rem 0}
h2{font-size:1.15rem;margin:1.8rem 0 .5rem}
p{margin:.4rem 0}
.lead{font-size:1.1rem;margin:.7rem 0}
.cards{display:grid;gap:.6rem;grid-template-columns:repeat(auto-fit,minmax(10.5rem,1fr));margin:1rem 0;
  padding:0;list-style:none}
.cards li{border:1px solid var(--rule);border-left:5px solid var(--rule);border-radius:6px;
  padding:.5rem .7rem;min-width:0}
.cards span{display:block;color:var(--soft);font-size:.86rem}
.cards strong{display:block;font-size:1.45rem;line-height:1.3;font-variant-numeric:tabular-nums}
.cards .good{border-left-color:var(--good)}
.cards .bad{border-left-color:var(--bad)}
.cards .bad strong{color:var(--bad)}
.cards .doubt{border-left-color:var(--doubt)}
.cards .doubt strong{color:var(--doubt)}
.soft,small,.none{color:var(--soft)}
.warn{background:var(--warn);padding:.6rem .8rem;border-radius:6px}
.scroll{overflow:auto;border:1px solid var(--rule);border-radius:6px}
.tall{max-height:40rem}
table{border-collapse:collapse;font-size:.8rem;font-variant-numeric:tabular-nums;width:100%}
.note{font-size:.86rem}
th,td{padding:.3rem .45rem;text-align:right;white-space:nowrap;border-top:1px solid var(--rule);
  vertical-align:top}
th:first-child{text-align:left;position:sticky;left:0;background:var(--page)}
th>div{width:max-content;max-width:11rem;white-space:normal;overflow-wrap:anywhere}
thead th{position:sticky;top:0;background:var(--page);z-index:1}
thead th:first-child{z-index:2}
th{font-weight:600}
.left{text-align:left}
.long{white-space:normal;min-width:20rem}
td small{display:block;font-size:.78em}
.plots{display:grid;gap:1.2rem;grid-template-columns:minmax(0,1fr)}
figure{margin:0;min-width:0}
figcaption{font-weight:600;margin-bottom:.2rem}
figure>svg{width:100%;height:auto;display:block;overflow:visible}
figure>svg.narrow{display:none}
svg text{font:12px system-ui,sans-serif;fill:var(--soft)}
.end{text-anchor:end}
.mid{text-anchor:middle}
.grid{stroke:var(--rule);fill:none}
.band0{fill:var(--b0)}
.band1{fill:var(--b1)}
.mark{stroke:var(--ink);stroke-dasharray:2 3;fill:none}
.tip{fill:var(--ink)}
.line{fill:none;stroke-linejoin:round}
.line.minor{stroke:var(--soft);stroke-opacity:.5}
.point.minor{fill:var(--soft)}
.dot{fill:transparent;stroke:none}
.dot:hover{fill:currentColor}
.area{fill-opacity:.8}
.hover{fill:transparent}
.hover:hover{fill:var(--ink);fill-opacity:.15}
.legend{list-style:none;margin:.3rem 0 0;padding:0;display:flex;flex-wrap:wrap;gap:.2rem 1rem;
  font-size:.86rem}
.legend li{min-width:0}
.legend svg{width:22px;height:10px;margin-right:.4rem}
pre{overflow-x:auto;font-size:.8rem;white-space:pre-wrap}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem}
dt{color:var(--soft)}
dd{margin:0}
@media(min-width:860px){.pairs{grid-template-columns:repeat(2,minmax(0,1fr))}
}
@media(max-width:700px){body{padding:.6rem}
.cards{grid-template-columns:repeat(2,minmax(0,1fr))}
.cards strong{font-size:1.2rem}
th>div{max-width:8rem}
figure>svg.wide{display:none}
figure>svg.narrow{display:block}
dl{grid-template-columns:1fr}
dd{margin-bottom:.4rem}
}
"""
_SERIES = "".join(
    f".line.c{i}{{stroke:var(--c{i})}}.area.c{i},.point.c{i}{{fill:var(--c{i})}}.dot.c{i}{{color:var(--c{i})}}"
    for i in range(8)
)


def page(title: str, parts: list[str]) -> str:
    """A whole page. The parts are HTML."""
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}{_SERIES}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


class State(StrEnum):
    """What a card says of its number, beside the words."""

    PLAIN = ""
    GOOD = "good"
    DOUBT = "doubt"
    BAD = "bad"


class Card(NamedTuple):
    """A number at the beginning of a page."""

    name: str
    value: str
    note: str = ""
    state: State = State.PLAIN


def cards(made: Sequence[Card]) -> str:
    """The numbers that matter most, side by side."""
    items = "".join(
        f'<li class="{card.state or "plain"}"><span>{escape(card.name)}</span>'
        f"<strong>{escape(card.value)}</strong><span>{escape(card.note)}</span></li>"
        for card in made
    )
    return f'<ul class="cards">{items}</ul>'


def lead(sentences: Sequence[str]) -> str:
    """The result in sentences."""
    return f'<p class="lead">{escape(" ".join(sentences))}</p>'


def warning(text: str) -> str:
    """An important note."""
    return f'<p class="warn" role="alert">{escape(text)}</p>'


def plots(figures: list[str], *, pairs: bool = False) -> str:
    """Figures in one column; with ``pairs``, in two columns on a wide page."""
    return f'<div class="plots{" pairs" if pairs else ""}">{"".join(figures)}</div>'
