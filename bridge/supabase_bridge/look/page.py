"""The page of `supabase-bridge look`, for Streamlit: two releases side by side. No element of it writes anything.

Streamlit runs this file again for each change of an element; what was read is in the session.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

import streamlit as st

from supabase_bridge.client.resolver import Resolver
from supabase_bridge.core.comparison import Area, ReleaseDocuments, compare
from supabase_bridge.core.comparison_text import change_line
from supabase_bridge.core.errors import BridgeError
from supabase_bridge.core.text import for_terminal, format_time
from supabase_bridge.look.charts import overlap_chart, score_chart
from supabase_bridge.look.comparison import (
    JudgedMetrics,
    ListComparison,
    MetricLine,
    Place,
    compare_lists,
    judge_metrics,
    places,
)
from supabase_bridge.look.errors import NoListsError
from supabase_bridge.look.lists import DEPTH, Lists, load_lists
from supabase_bridge.look.opened import TITLES_NAME, Side, open_side, reference_of
from supabase_bridge.settings.model import Settings

_LENGTHS = (10, 20, DEPTH)
_NONE = "—"
_NOW, _CANDIDATE = "Now", "Candidate"
_PUNCTUATION = re.compile(r"[!-/:-@\[-`{-~]")

_Read = TypeVar("_Read")


def main(model: str, now: str, candidate: str) -> None:
    """Show the page."""
    st.set_page_config(page_title=f"{for_terminal(model)}: look before the switch", layout="wide")
    st.title(f"{_text(model)}: look before the switch")
    st.caption("This page only reads. It moves no pointer: you decide in MLflow, as shown at the end.")
    try:
        settings = Settings.load(reading=True)
        with Resolver.from_settings(settings, report=False) as resolver:
            with st.spinner("Reading both releases …"):
                sides = _once("sides", lambda: _open_sides(resolver, model, now, candidate))
            _show_moves(resolver, sides)
            _show_sides(*sides)
            metrics = judge_metrics(sides[0].metrics, sides[1].metrics)
            # The numbers of the lists stand above the metrics, and are known after them.
            glance = st.container()
            _show_metrics(metrics, sides)
            compared = _show_lists(resolver, settings, sides)
    except BridgeError as error:
        st.error(f"**The releases cannot be compared.** {_text(str(error))}")
        return
    _show_glance(glance, metrics, compared, sides)
    _show_decision(settings, *sides)


def _once(name: str, read: Callable[[], _Read]) -> _Read:
    """Read something once for each session of a browser; after an error the next run of the page tries again."""
    if name not in st.session_state:
        st.session_state[name] = read()
    found: _Read = st.session_state[name]
    return found


def _open_sides(resolver: Resolver, model: str, now: str, candidate: str) -> tuple[Side, Side]:
    first, second = (open_side(resolver, reference_of(model, text)) for text in (now, candidate))
    return first, second


def _show_moves(resolver: Resolver, sides: Sequence[Side]) -> None:
    """Say which of the channels names another release by now; asked at each change of an element."""
    for side in sides:
        try:
            found = resolver.resolve(side.reference)
        except BridgeError as error:
            st.warning(f"{_text(side.reference)} cannot be read any more: {_text(str(error))}")
            continue
        if found.run_id != side.release.run_id:
            moved = f"{_text(side.reference)} names {_text(found.run_id)} by now."
            st.warning(f"{moved} This page shows {_text(side.release.run_id)}; reload it to compare the other one.")
    if sides[0].release.run_id == sides[1].release.run_id:
        names = " and ".join(dict.fromkeys(_text(side.name) for side in sides))
        st.info(f"Both sides are the same release ({names}), so nothing differs.")


def _show_sides(now: Side, candidate: Side) -> None:
    """Show which releases these are."""
    for column, side, label in zip(st.columns(2), (now, candidate), (_NOW, _CANDIDATE), strict=True):
        with column.container(border=True):
            with st.container(horizontal=True, vertical_alignment="center"):
                st.badge(label, color="blue" if label == _NOW else "orange")
                st.markdown(f"**{_text(side.release.run_id)}**")
            release = side.release
            facts = [] if release.model_version is None else [f"version {release.model_version}"]
            if release.channel is not None and release.published_at is not None:
                facts.append(f"current in {_text(release.channel)} since {_time(release.published_at)}")
            if side.meta.trained_at is not None:
                facts.append(f"trained {_time(side.meta.trained_at)}")
            facts.append("signed" if release.signed else "not signed")
            st.caption(" · ".join(facts))
            if release.release_notes:
                st.caption(_text(release.release_notes))


def _show_glance(
    place: st.delta_generator.DeltaGenerator,
    metrics: JudgedMetrics,
    compared: ListComparison | None,
    sides: tuple[Side, Side],
) -> None:
    """Show the four facts that matter most."""
    gate, counts, overlap, shift = place.columns(4)
    verdict = sides[1].metrics.verdict()
    word = "none" if verdict is None else "passed" if verdict.passed else "failed"
    gate.metric("Gate of the candidate", word, border=True, help="The gate's verdict when the release was made.")
    better, worse = metrics.count(better=True), metrics.count(better=False)
    word = f"{better} better, {worse} worse"
    word = "not comparable" if metrics.problem else word if better or worse else _NONE
    explained = "A criterion of the gate tells which direction is better; other metrics are not counted."
    counts.metric("Metrics", word, border=True, help=explained)
    same = _NONE if compared is None else f"{compared.mean_same:.1f} of {compared.mean_length:.0f}"
    overlap.metric("Items in both lists", same, border=True, help="The mean over the users of the sample.")
    change = _NONE if compared is None else f"{compared.score_change:+.3f}"
    shift.metric("Change of the median score", change, border=True, help="A shift that no metric of ranks shows.")


def _show_metrics(metrics: JudgedMetrics, sides: tuple[Side, Side]) -> None:
    """Show the metrics with differences, and the candidate's gate."""
    st.header("Metrics")
    if metrics.problem:
        st.warning(f"The metrics cannot be compared: {_text(metrics.problem)} (candidate, then now).")
    if not metrics.lines:
        st.info("Neither release has metrics. Log them before the model is registered: docs/training.md.")
        return
    methods = list(dict.fromkeys(method for line in metrics.lines for method in line.references))
    rows = [
        {
            "Metric": for_terminal(line.name),
            _NOW: _number(line.now),
            _CANDIDATE: _number(line.candidate),
            "Difference": _number(line.difference, signed=True),
            "": _judgement(line),
            **{for_terminal(method): _number(line.references.get(method)) for method in methods},
        }
        for line in metrics.lines
    ]
    numbers = [_NOW, _CANDIDATE, "Difference", *map(for_terminal, methods)]
    st.dataframe(_columns(rows), hide_index=True, column_config=dict.fromkeys(numbers, _right()))
    verdict = sides[1].metrics.verdict()
    found = (
        [f"{'✓' if finding.passed else '✗'} {_text(finding.text)}" for finding in verdict.findings] if verdict else []
    )
    if found:
        st.caption(f"Gate of the candidate: {' · '.join(found)}")
    _show_other_differences(*sides)


def _judgement(line: MetricLine) -> str:
    if line.better is not None:
        return "better" if line.better else "worse"
    return "" if not line.difference else "higher" if line.difference > 0 else "lower"


def _show_other_differences(now: Side, candidate: Side) -> None:
    """Show what else differs, as `supabase-bridge diff` has it; the files differ in every two releases."""
    before, after = (ReleaseDocuments(meta=side.meta, metrics=side.metrics) for side in (now, candidate))
    rows = [
        {"About": area.value, "Now → candidate": for_terminal(change_line(change))}
        for area, changes in compare(before, after).changes.items()
        for change in changes
        if area is not Area.FILES
    ]
    with st.expander(f"Parameters, data and code: {len(rows)} differences"):
        if rows:
            st.dataframe(_columns(rows), hide_index=True)
        else:
            st.caption("The documents of both releases record the same.")


def _show_lists(resolver: Resolver, settings: Settings, sides: tuple[Side, Side]) -> ListComparison | None:
    """Show how the lists of recommendations change: for all users of the sample, and for one."""
    st.header("Lists")
    now, candidate = (side.release for side in sides)
    try:
        with st.spinner("Making the lists of both releases …"):
            lists = _once("lists", lambda: load_lists(resolver, settings, now, candidate))
    except NoListsError as error:
        st.info(
            f"There are no lists to compare. {_text(str(error))}.\n\nLoad an embedding set for each release "
            "(`supabase-bridge embeddings load`), or log a sample with each training: docs/look.md."
        )
        return None
    length = st.segmented_control("Length of a list", _LENGTHS, default=20) or 20
    compared = compare_lists(lists.now, lists.candidate, length=length)
    if compared is None:
        return None
    st.caption(f"From {_text(lists.source)}. Items that a user knows already are not left out.")
    left, right = st.columns(2)
    with left.container(border=True):
        st.markdown("**How many items stay?** Users by the number of items in both lists")
        st.vega_lite_chart(*overlap_chart(compared))
    with right.container(border=True):
        st.markdown(f"**Do the scores move?** Scores of the first {length} items")
        st.vega_lite_chart(*score_chart(compared))
    _show_changed(compared)
    _show_user(lists, compared, sides, length)
    return compared


def _show_changed(compared: ListComparison) -> None:
    st.subheader("Users whose lists changed most")
    rows = [
        {
            "User": for_terminal(change.user),
            "In both lists": f"{change.same} of {change.length}",
            "Moved by (mean places)": f"{change.moved:.1f}",
            "Change of the mean score": f"{change.score_change:+.3f}",
        }
        for change in compared.changes[:10]
    ]
    st.dataframe(_columns(rows), hide_index=True, column_config=dict.fromkeys(list(rows[0])[1:], _right()))


def _show_user(lists: Lists, compared: ListComparison, sides: tuple[Side, Side], length: int) -> None:
    """Show both lists of one user."""
    st.subheader("The lists of one user")
    changes = {change.user: change for change in compared.changes}

    def label(user: str) -> str:
        return f"{for_terminal(user)} ({changes[user].same} of {changes[user].length} in both lists)"

    user = st.selectbox("User, the most changed first", list(changes), format_func=label)
    if user is None:
        return
    own = (lists.now[user][:length], lists.candidate[user][:length])
    titles = {**sides[0].titles, **sides[1].titles}
    if not titles:
        st.caption(f"Neither release carries {TITLES_NAME}, so items are shown by their ids: docs/look.md.")
    left, right = st.columns(2)
    with left:
        st.badge(_NOW, color="blue")
        _show_list(places(own[0], own[1]), titles, "Becomes", "gone")
    with right:
        st.badge(_CANDIDATE, color="orange")
        _show_list(places(own[1], own[0]), titles, "Was", "new")


def _show_list(found: Sequence[Place], titles: Mapping[str, str], other: str, absent: str) -> None:
    rows = [
        {
            "#": place.rank,
            "Item": for_terminal(titles.get(place.id, place.id)),
            "Score": f"{place.score:.3f}",
            other: absent if place.other_rank is None else f"{place.other_rank} {_arrow(place, other)}".strip(),
        }
        for place in found
    ]
    if not rows:
        st.info("This user has no list.")
        return
    small = st.column_config.Column(width="small")
    config = {
        "#": st.column_config.Column(width=40),
        "Item": st.column_config.Column(width="large"),
        "Score": _right(),
        other: small,
    }
    # All rows are visible: a list that scrolls inside the page cannot be compared with its neighbour.
    st.dataframe(_columns(rows), hide_index=True, column_config=config, height="content")


def _arrow(place: Place, other: str) -> str:
    """Whether the item is higher or lower in the candidate's list than in the current one."""
    if place.other_rank is None or place.other_rank == place.rank:
        return ""
    now, candidate = (place.other_rank, place.rank) if other == "Was" else (place.rank, place.other_rank)
    return "▲" if candidate < now else "▼"


def _show_decision(settings: Settings, now: Side, candidate: Side) -> None:
    """Show how the switch is made, and undone."""
    st.header("Decide")
    version, origin = candidate.release.model_version, candidate.meta.mlflow
    channel = now.release.channel or "latest"
    alias = next((alias for alias, target in settings.aliases.items() if target == channel), None)
    if version is not None and origin is not None and alias is not None:
        st.markdown(f"Give version {version} the alias `{_plain(alias)}` in MLflow to make it current:")
        call = f"MlflowClient().set_registered_model_alias({origin.registered_model!r}, {alias!r}, {str(version)!r})"
        st.code(call, language="python")
    else:
        st.markdown("Promote the candidate's version in MLflow to make it current.")
    st.markdown("To undo the switch:")
    st.code(f"supabase-bridge rollback {_plain(now.release.model)} --channel {channel}", language="shell")


def _columns(rows: Sequence[Mapping[str, object]]) -> dict[str, list[object]]:
    """Return rows as columns, which Streamlit shows as a table."""
    return {name: [row[name] for row in rows] for name in rows[0]}


def _right() -> Any:
    return st.column_config.TextColumn(alignment="right")


def _number(value: float | None, *, signed: bool = False) -> str:
    """Return a number with four significant digits; a dash for one that is missing."""
    if value is None:
        return _NONE
    return f"{value:+.4g}" if signed else f"{value:.4g}"


def _time(time: datetime) -> str:
    return format_time(time.replace(microsecond=0))


def _plain(text: str) -> str:
    """Return a text that is shown as code, on one line."""
    return for_terminal(text).replace("`", "'")


def _text(text: str) -> str:
    """Return Markdown of Streamlit that shows a foreign text as it is: no link, image, colour or formula."""
    return _PUNCTUATION.sub(r"\\\g<0>", for_terminal(text))


if __name__ == "__main__":
    main(*sys.argv[1:4])
