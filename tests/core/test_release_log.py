"""What the next entry of a channel's release log is."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime, timedelta, timezone
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from supabase_bridge.core.documents import Cause, CurrentRelease, FileRecord, Manifest
from supabase_bridge.core.layout import ChannelPaths, ReleasePaths, RunId
from supabase_bridge.core.release_log import (
    PREVIOUS_KEPT,
    activated_manually,
    adopted,
    chained,
    commits,
    digest,
    next_entry,
    pinned,
    precedes,
    reissued,
)

LATEST = ChannelPaths(model_key="two_tower", channel="latest")
NOON = datetime(2025, 11, 1, 12, tzinfo=timezone.utc)
RECORD = FileRecord(size_bytes=1, sha256="ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb")
BY_HAND = Cause(by_hand=True)


def event(number: int, registry: str = "ours") -> Cause:
    return Cause(registry_id=registry, event_id=number)


def release(number: int) -> CurrentRelease:
    paths = ReleasePaths(model_key="two_tower", run_id=RunId(time=NOON + timedelta(days=number)))
    return CurrentRelease(
        run_id=str(paths.run_id),
        published_at=NOON + timedelta(days=number, hours=1),
        onnx_path=paths.onnx,
        meta_path=paths.meta,
        metrics_path=paths.metrics,
        model_version=number,
        files={paths.onnx_name: RECORD},
    )


def entry_after(head: Manifest | None, number: int, cause: Cause) -> Manifest:
    entry = next_entry(head, LATEST, current=release(number), cause=cause, release_notes=f"release {number}")
    assert entry is not None
    return entry


def log_of(*numbers: int) -> Manifest:
    """The head of a log of promotions of these releases."""
    head = None
    for position, number in enumerate(numbers, start=1):
        head = entry_after(head, number, event(position))
    assert head is not None
    return head


def previous(entry: Manifest) -> list[int | None]:
    return [pointer.model_version for pointer in entry.previous]


def test_the_first_entry_has_nothing_before_it() -> None:
    entry = log_of(1)
    assert (entry.sequence, previous(entry)) == (1, [])
    assert (entry.model_name, entry.channel) == ("two_tower", "latest")
    assert entry.release_notes == "release 1"


def test_the_release_that_was_current_comes_first_in_previous() -> None:
    entry = log_of(1, 2, 3)
    assert (entry.sequence, entry.current, previous(entry)) == (3, release(3), [2, 1])


def test_no_more_than_two_previous_releases_are_kept() -> None:
    assert previous(log_of(1, 2, 3, 4)) == [3, 2]


def test_a_rollback_keeps_the_release_rolled_back_from() -> None:
    assert previous(log_of(1, 2, 1)) == [2]
    assert previous(log_of(1, 2, 3, 2)) == [3, 1]
    assert previous(log_of(1, 2, 3, 1)) == [3, 2]


def test_a_previous_release_is_named_with_all_but_its_files() -> None:
    pointer = log_of(1, 2).previous[0]
    assert pointer.to_object() == {name: value for name, value in release(1).to_object().items() if name != "files"}


def test_an_unknown_field_of_a_release_stays_with_it_in_previous() -> None:
    head = Manifest.parse(log_of(1).to_bytes().replace(b'"model_version": 1', b'"model_version": 1, "signature": null'))
    assert entry_after(head, 2, event(2)).previous[0].to_object()["signature"] is None


def test_a_release_that_is_current_already_makes_no_entry() -> None:
    assert next_entry(log_of(1), LATEST, current=release(1), cause=event(9), release_notes=None) is None


def test_a_release_moved_to_by_hand_and_then_promoted_is_the_registrys_again() -> None:
    by_hand = entry_after(log_of(1), 2, BY_HAND)
    promoted = entry_after(by_hand, 2, event(9))
    assert activated_manually(by_hand)
    assert not activated_manually(promoted)
    assert (promoted.sequence, previous(promoted)) == (3, [1])


def test_a_promoted_release_can_be_held_by_hand_once() -> None:
    held = entry_after(log_of(1), 1, BY_HAND)
    assert activated_manually(held)
    assert next_entry(held, LATEST, current=release(1), cause=BY_HAND, release_notes=None) is None


@given(st.lists(st.tuples(st.integers(1, 4), st.booleans()), max_size=12))
def test_previous_never_repeats_a_release_and_always_names_the_one_before(moves: list[tuple[int, bool]]) -> None:
    head: Manifest | None = None
    for position, (number, by_hand) in enumerate(moves, start=1):
        cause = BY_HAND if by_hand else event(position)
        entry = next_entry(head, LATEST, current=release(number), cause=cause, release_notes=None)
        if entry is None:
            continue
        named = [entry.current.model_version, *previous(entry)]
        assert len(set(named)) == len(named) <= 1 + PREVIOUS_KEPT
        assert entry.sequence == (1 if head is None else head.sequence + 1)
        if head is not None and head.current.run_id != entry.current.run_id:
            assert previous(entry)[0] == head.current.model_version
        assert Manifest.parse(entry.to_bytes()) == entry
        head = entry


def test_an_entry_is_recognised_by_the_event_that_asked_for_it() -> None:
    entry = entry_after(None, 1, event(5))
    assert commits(entry, event(5))
    assert not commits(entry, event(6))
    assert not commits(entry, event(5, registry="theirs"))


def test_two_entries_by_hand_are_never_taken_for_each_other() -> None:
    entry = entry_after(None, 1, BY_HAND)
    assert not commits(entry, BY_HAND)
    assert not precedes(entry, BY_HAND)


def test_only_an_earlier_event_of_the_same_registry_precedes() -> None:
    entry = entry_after(None, 1, event(5))
    assert precedes(entry, event(6))
    assert not precedes(entry, event(5))
    assert not precedes(entry, event(4))
    assert not precedes(entry, event(6, registry="theirs"))
    assert not precedes(entry_after(None, 1, BY_HAND), event(6))


def test_an_entry_without_a_cause_is_nobodys_switch() -> None:
    entry = entry_after(None, 1, event(5)).model_copy(update={"cause": None})
    assert not activated_manually(entry)
    assert not commits(entry, event(5))
    assert not precedes(entry, event(6))


def test_a_confirmation_says_what_the_head_says_and_has_no_signature_yet() -> None:
    head = log_of(1, 2).model_copy(update={"signature": "the head's own"})
    later = NOON + timedelta(days=9)
    entry = reissued(head, files={"model.sig": RECORD}, at=later)
    assert (entry.sequence, entry.confirmed_at, entry.signature) == (3, later, None)
    assert entry.current.files == {"model.sig": RECORD}
    changed = {"sequence", "confirmed_at", "signature", "current"}
    assert entry.to_object().keys() - changed == head.to_object().keys() - changed
    assert (entry.previous, entry.cause, entry.release_notes) == (head.previous, head.cause, head.release_notes)
    assert entry.current.published_at == head.current.published_at


def test_a_pointer_moved_by_hand_stays_until_somebody_promotes_after_it() -> None:
    head = entry_after(None, 1, BY_HAND)
    moved_at = head.current.published_at
    assert pinned(head, promoted_at=moved_at - timedelta(milliseconds=1))
    assert not pinned(head, promoted_at=moved_at)
    assert pinned(head, promoted_at=None)


def test_a_pointer_that_the_registry_moved_follows_every_promotion() -> None:
    head = entry_after(None, 1, event(5))
    assert not pinned(head, promoted_at=head.current.published_at - timedelta(days=1))
    assert not pinned(head, promoted_at=None)
    assert not pinned(None, promoted_at=None)


def test_an_entry_names_the_digest_of_the_one_that_it_follows() -> None:
    first = log_of(1)
    second = chained(entry_after(first, 2, event(2)), first)
    assert second.previous_entry_sha256 == digest(first)
    assert chained(second, None).previous_entry_sha256 is None
    assert digest(first) != digest(first.model_copy(update={"signature": "a..b"}))


def test_the_digest_does_not_depend_on_the_order_or_the_spaces_of_the_json() -> None:
    entry = log_of(1)
    text = json.dumps(dict(reversed(entry.to_object().items())))
    assert digest(Manifest.parse(text.encode())) == digest(entry)


def test_the_digest_is_what_sha256sum_says_of_sorted_json() -> None:
    data = (Path(__file__).parent.parent / "golden" / "manifest_of_whom.json").read_bytes()
    text = json.dumps(json.loads(data), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert digest(Manifest.parse(data)) == hashlib.sha256(text.encode()).hexdigest()


def test_an_entry_after_one_without_a_canonical_form_names_no_digest() -> None:
    head = Manifest.from_object({**log_of(1).to_object(), "foreign": 2**60})
    assert chained(entry_after(head, 2, event(2)), head).previous_entry_sha256 is None


def test_a_reissued_and_an_adopted_entry_name_the_operator() -> None:
    head = entry_after(None, 1, Cause(registry_id="ours", event_id=1, by="alice"))
    again = reissued(head, files={}, at=NOON, by="ops")
    assert again.cause is not None
    assert (again.cause.by, again.confirmed_by) == ("alice", "ops")
    given = adopted(head, "theirs", by="ops")
    assert given.cause is not None
    assert given.cause.by == "ops"
