"""Plots as SVG elements that stand inside an HTML page: drawn in its font and colours, light or dark.

Colours come from classes that the page's style sheet (``page.css``) defines. An element with the attribute
``data-tip`` says what lies under the pointer; the page's script (``page.js``) shows it. All text is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .energies import Histogram

if TYPE_CHECKING:
    from .modes import ModeComparison

Array = NDArray[np.float64]

#: More modes than this are drawn without their names.
NAMED_BARS = 20

#: Colours of a heat map, from the first value to the last: the viridis map, reversed.
HEAT = (
    "#fde725", "#c8e020", "#90d743", "#5ec962", "#35b779", "#20a486", "#21918c",
    "#287c8e", "#31688e", "#3b528b", "#443983", "#481f70", "#440154",
)  # fmt: skip


def typeset(number: str) -> str:
    """A formatted number with a minus sign instead of hyphens."""
    return number.replace("-", "\N{MINUS SIGN}")


def ticks(low: float, high: float, *, about: int = 5) -> list[tuple[float, str]]:
    """Round numbers in ``[low, high]``, 1, 2 or 5 times a power of ten apart, and how they are written."""
    width = high - low
    if not (math.isfinite(width) and width > 0):
        return []
    power = 10.0 ** math.floor(math.log10(width / about))
    step = min((k * power for k in (1, 2, 5, 10)), key=lambda s: abs(math.log(width / s / about)))
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    plain = step >= 1e-4 and max(abs(low), abs(high)) < 1e5
    return [
        (k * step, typeset(f"{k * step:.{digits}f}" if plain else f"{k * step:.3g}"))
        for k in range(first, last + 1)
    ]


@dataclass(frozen=True)
class _Panel:
    """A plotting area with linear axes; ``x`` and ``y`` map values to the drawing."""

    width: float
    height: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    left: float = 52.0
    right: float = 10.0
    top: float = 28.0
    bottom: float = 44.0

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (self.width - self.left - self.right)

    def y(self, value: float) -> float:
        low, high = self.y_range
        room = self.height - self.top - self.bottom
        return self.height - self.bottom - (value - low) / (high - low) * room

    def svg(self, body: Sequence[str], *, label: str, named: str = "plot") -> str:
        """The whole element; ``label`` says to those who cannot see it what it shows."""
        size = f'viewBox="0 0 {self.width:g} {self.height:g}"'
        style = f'style="max-width:{1.2 * self.width:.0f}px"'
        return (
            f'<svg class="{named}" {size} {style} role="img" aria-label="{escape(label)}">'
            + "".join(body)
            + "</svg>"
        )

    def axes(
        self,
        x_label: str,
        y_label: str,
        *,
        x_ticks: Sequence[tuple[float, str]],
        y_ticks: Sequence[tuple[float, str]],
    ) -> list[str]:
        """Axes with ticks and labels."""
        base, end = self.height - self.bottom, self.width - self.right
        parts = [f'<path class="axis" d="M{self.left:g} {self.top:g}V{base:g}H{end:g}"/>']
        for value, text in x_ticks:
            at = f"{self.x(value):.1f}"
            parts.append(f'<path class="axis" d="M{at} {base:g}v4"/>')
            parts.append(f'<text x="{at}" y="{base + 16:g}" text-anchor="middle">{text}</text>')
        for level, text in y_ticks:
            tall = self.y(level)
            parts.append(f'<path class="axis" d="M{self.left:g} {tall:.1f}h-4"/>')
            parts.append(
                f'<text x="{self.left - 7:g}" y="{tall + 4:.1f}" text-anchor="end">{text}</text>'
            )
        middle = (self.left + end) / 2
        parts.append(
            f'<text class="label" x="{middle:g}" y="{self.height - 6:g}" text-anchor="middle">'
            f"{escape(x_label)}</text>"
        )
        centre = (self.top + base) / 2
        parts.append(
            f'<text class="label" transform="translate(13 {centre:g}) rotate(-90)" '
            f'text-anchor="middle">{escape(y_label)}</text>'
        )
        return parts

    def legend(self, *, filled: bool) -> list[str]:
        """Names of the two sides, above the plot; samples are a line or ``filled``."""
        x, own = self.left + 4, self.left + 98
        return [
            f'<rect class="reference fill{" solid" * filled}" x="{x:g}" y="8" width="16" height="10"/>',
            f'<text x="{x + 22:g}" y="17">reference</text>',
            f'<rect class="samples fill" x="{own:g}" y="8" width="16" height="10"/>'
            if filled
            else f'<path class="samples line" d="M{own:g} 13h16"/>',
            f'<text x="{x + 116:g}" y="17">samples</text>',
        ]


def histogram(h: Histogram, *, label: str, title: str) -> str:
    """The densities of samples (a line) and reference (an area) against ``label``."""
    top = 1.06 * max(float(h.samples.max()), float(h.reference.max()), 1e-300)
    edges = h.edges
    panel = _Panel(440, 270, (float(edges[0]), float(edges[-1])), (0.0, top))
    y_ticks = ticks(0, top, about=4)
    digits = max(0, 1 - math.floor(math.log10(edges[1] - edges[0])))
    body = panel.axes(label, "probability density", x_ticks=ticks(*panel.x_range), y_ticks=y_ticks)
    body.append(f'<path class="reference fill" d="{_stairs(panel, edges, h.reference)}z"/>')
    body.append(f'<path class="samples line" d="{_stairs(panel, edges, h.samples)}"/>')
    for low, high, p, q in zip(edges[:-1], edges[1:], h.samples, h.reference, strict=True):
        left, right = panel.x(float(low)), panel.x(float(high))
        tip = typeset(f"{low:.{digits}f} to {high:.{digits}f}: samples {p:.3g}, reference {q:.3g}")
        body.append(
            f'<rect class="hit" x="{left:.1f}" y="{panel.top:g}" width="{right - left:.1f}" '
            f'height="{panel.height - panel.top - panel.bottom:g}" data-tip="{tip}"/>'
        )
    return panel.svg([*body, *panel.legend(filled=False)], label=title)


def _stairs(panel: _Panel, edges: Array, values: Array) -> str:
    base = panel.y(0.0)
    steps = [f"M{panel.x(float(edges[0])):.1f} {base:.1f}"]
    for edge, value in zip(edges[1:], values, strict=True):
        steps.append(f"V{panel.y(float(value)):.1f}H{panel.x(float(edge)):.1f}")
    return "".join([*steps, f"V{base:.1f}"])


def bars(modes: ModeComparison, *, title: str) -> str:
    """Mode weights of reference and samples side by side, with standard errors."""
    names, k = modes.samples.names, len(modes.samples.names)
    sides = (("reference", modes.reference, -0.38), ("samples", modes.samples, 0.02))
    high = max(float((side.weights + side.se).max()) for _, side, _ in sides)
    top = 1.06 * max(high, 1e-300)
    slanted = k <= NAMED_BARS and max(map(len, names)) * k > 60
    shown = [name if len(name) <= 24 else name[:23] + "…" for name in names]
    reach = 0.62 * 6.2 * max(map(len, shown)) if slanted else 0.0
    panel = _Panel(
        min(1000.0, max(440.0, 70.0 + 44.0 * k)),
        270 + reach,
        (-0.6, k - 0.4),
        (0.0, top),
        left=max(52.0, reach - 20.0),
        bottom=(44 if k > NAMED_BARS else 26) + reach,
    )
    base = panel.y(0.0)
    body = panel.axes(
        "" if k <= NAMED_BARS else "mode", "probability", x_ticks=[], y_ticks=ticks(0, top, about=4)
    )
    for i, name in enumerate(shown if k <= NAMED_BARS else ()):
        at = f"{panel.x(i):.1f} {base + 16:g}"
        turn = " rotate(-38)" if slanted else ""
        anchor = "end" if slanted else "middle"
        body.append(
            f'<text transform="translate({at}){turn}" text-anchor="{anchor}">{escape(name)}</text>'
        )
    for side, weights, shift in sides:
        for i, (weight, se) in enumerate(zip(weights.weights, weights.se, strict=True)):
            left, right = panel.x(i + shift), panel.x(i + shift + 0.36)
            middle = (left + right) / 2
            tip = escape(f"{names[i]}, {side}: {weight:.4f} ± {se:.4f}")
            body.append(
                f'<rect class="{side} fill solid" x="{left:.1f}" y="{panel.y(weight):.1f}" '
                f'width="{right - left:.1f}" height="{base - panel.y(weight):.1f}" data-tip="{tip}"/>'
                f'<path class="error" d="M{middle:.1f} {panel.y(max(weight - se, 0.0)):.1f}'
                f'V{panel.y(weight + se):.1f}"/>'
            )
    return panel.svg([*body, *panel.legend(filled=True)], label=title)


def heat_map(
    values: Array, *, edges: Array, depth: float, labels: tuple[str, str], title: str, unit: str
) -> str:
    """Values ``(b, b)``, first axis horizontal, as colours from 0 to ``depth``; blank where not finite."""
    span = (float(edges[0]), float(edges[-1]))
    panel = _Panel(346, 340, span, span, top=10.0, right=16.0)
    marks = [(float(v), typeset(f"{v:.0f}")) for v in np.linspace(*span, 5)]
    middles = (edges[:-1] + edges[1:]) / 2
    size = panel.x(float(edges[1])) - panel.x(float(edges[0]))
    tall = panel.y(float(edges[0])) - panel.y(float(edges[1]))
    body = panel.axes(*labels, x_ticks=marks, y_ticks=marks)
    for i, j in np.argwhere(np.isfinite(values)):
        value = float(values[i, j])
        colour = HEAT[min(len(HEAT) - 1, max(0, int(value / depth * len(HEAT))))]
        tip = typeset(f"{middles[i]:g}, {middles[j]:g}: {value:.1f}") + f" {unit}"
        body.append(
            f'<path fill="{colour}" d="M{panel.x(float(edges[i])):.1f} {panel.y(float(edges[j + 1])):.1f}'
            f'h{size + 0.1:.1f}v{tall + 0.1:.1f}h-{size + 0.1:.1f}z" data-tip="{escape(tip)}"/>'
        )
    return panel.svg(body, label=title)
