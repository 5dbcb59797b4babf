"""The charts of a look, as specifications of Vega-Lite. Pure.

Their two colours are those of Okabe and Ito for people with colour blindness; each has a contrast of 3:1 and more with
Streamlit's light and dark background. A legend and tooltips say the same in words.
"""

from __future__ import annotations

from typing import Any

from supabase_bridge.look.comparison import ListComparison

COLOURS = {"Now": "#0072B2", "Candidate": "#D55E00"}

_HEIGHT = 260

Chart = tuple[list[dict[str, Any]], dict[str, Any]]
"""The rows of a chart, and its specification."""


def overlap_chart(compared: ListComparison) -> Chart:
    """Return how many users have how many items in both lists."""
    counts = compared.users_by_overlap()
    rows = [{"same": same, "users": users} for same, users in enumerate(counts)]
    horizontal = {"field": "same", "type": "ordinal", "title": "items in both lists", "axis": {"labelAngle": 0}}
    if len(counts) > 25:
        horizontal["axis"] = {"labelAngle": 0, "values": list(range(0, len(counts), 5))}
    specification = {
        "description": "Users by the number of items that are in both lists",
        "height": _HEIGHT,
        "mark": {"type": "bar", "color": "#7A7A7A"},
        "encoding": {
            "x": horizontal,
            "y": {"field": "users", "type": "quantitative", "title": "users", "axis": {"tickMinStep": 1}},
            "tooltip": [{"field": "same", "title": "items in both lists"}, {"field": "users", "title": "users"}],
        },
    }
    return rows, specification


def score_chart(compared: ListComparison) -> Chart:
    """Return the distribution of both releases' scores."""
    rows = [
        {"score": (found.low + found.high) / 2, "share": share, "release": name}
        for found in compared.bins
        for name, share in zip(COLOURS, (found.now, found.candidate), strict=True)
    ]
    colour = {
        "field": "release",
        "type": "nominal",
        "title": None,
        "scale": {"domain": list(COLOURS), "range": list(COLOURS.values())},
        "legend": {"orient": "top-right"},
    }
    specification = {
        "description": "Scores of both releases: the share of the items by score",
        "height": _HEIGHT,
        "mark": {"type": "area", "interpolate": "step", "line": True, "fillOpacity": 0.25},
        "encoding": {
            "x": {"field": "score", "type": "quantitative", "title": "score", "scale": {"zero": False}},
            "y": {
                "field": "share",
                "type": "quantitative",
                "title": "share of the items",
                "stack": None,
                "axis": {"format": "%"},
            },
            "color": colour,
            "tooltip": [
                {"field": "release", "title": "release"},
                {"field": "score", "title": "score", "format": ".3f"},
                {"field": "share", "title": "share", "format": ".1%"},
            ],
        },
    }
    return rows, specification
