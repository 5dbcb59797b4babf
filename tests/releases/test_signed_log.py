"""Release logs whose entries are signed: who may write, upon what, and what a forger in the bucket achieves."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from supabase_bridge.core.documents import Cause, Manifest
from supabase_bridge.releases.channel import Activation, Channel
from supabase_bridge.releases.errors import ChannelNotFoundError, UntrustedLogError
from supabase_bridge.releases.manual import activate_manually, reissue, release_before, sign_release
from supabase_bridge.trust.errors import ManifestRefusedError, Refusal, SigningError
from supabase_bridge.trust.signer import NO_SIGNING, SigningPolicy
from supabase_bridge.trust.verify import TrustPolicy, verify_manifest
from tests.support.activation import activate
from tests.support.signatures import refused_because, sealed, signer, trusting
from tests.support.simulators.memory_store import MemoryStore
from tests.support.small_releases import LATEST, NOON, PLAIN, entries, event, keys_of, lay_out, named, published, run_id

FIRST = sealed("first")


@pytest.fixture
def store() -> MemoryStore:
    """Three releases, signed by the first key."""
    made = MemoryStore()
    for number in (1, 2, 3):
        lay_out(made, number)
        sign_release(made, keys_of(number), signing=FIRST)
    return made


def switch_to(
    store: MemoryStore, number: int, cause: Cause | None = None, *, signing: SigningPolicy = FIRST
) -> Activation:
    return activate(store, LATEST, run_id(number), cause=cause or event(number), published_at=NOON, signing=signing)


def believed(store: MemoryStore, *names: str) -> Manifest:
    """The published manifest, as a consumer who trusts these keys takes it."""
    policy = TrustPolicy(keys=trusting(*(names or ("first",))))
    return verify_manifest(published(store), policy=policy, channel=LATEST, seen=None, now=NOON)


def forge(store: MemoryStore, sequence: int, *, sign: str | None = None, **changes: Any) -> Manifest:
    """What somebody who can write to the bucket, and has no trusted key, puts into the log."""
    base = entries(store)[0].model_copy(update={"signature": None, "sequence": sequence, **changes})
    entry = base if sign is None else signer(sign).sign(base)
    store.overwrite(LATEST.history(sequence), entry.to_bytes(), PLAIN)
    return entry


def untouched(store: MemoryStore, act: Any, error: type[Exception]) -> Exception:
    """An attempt that ends in an error and leaves the channel as it was."""
    before = {info.key: store.read(info.key, limit_bytes=10**6) for info in store.list("two_tower/latest/")}
    with pytest.raises(error) as caught:
        act()
    assert {info.key: store.read(info.key, limit_bytes=10**6) for info in store.list("two_tower/latest/")} == before
    return caught.value


# --- writing ----------------------------------------------------------------------------------------------------------


def test_every_entry_is_signed_and_the_manifest_is_the_newest_one(store: MemoryStore) -> None:
    for number in (1, 2, 3):
        switch_to(store, number)
    assert [entry.signature is not None for entry in entries(store)] == [True, True, True]
    assert believed(store).to_bytes() == store.read(LATEST.history(3), limit_bytes=10**6)
    assert named(store) == [3, 2, 1]


def test_a_second_attempt_at_an_event_finds_its_signed_entry(store: MemoryStore) -> None:
    first, second = switch_to(store, 1), switch_to(store, 1)
    assert (second.entry, second.activated, len(entries(store))) == (first.entry, True, 1)


def test_a_pointer_moved_by_hand_is_signed_too(store: MemoryStore) -> None:
    activate_manually(store, LATEST, run_id(2), now=NOON, signing=FIRST)
    assert believed(store).current.model_version == 2


def test_without_a_signing_key_nothing_is_written_where_keys_are_trusted(store: MemoryStore) -> None:
    untouched(store, lambda: switch_to(store, 1, signing=sealed(None, "first")), SigningError)


def test_a_writer_without_any_key_does_not_go_on_with_a_signed_log(store: MemoryStore) -> None:
    switch_to(store, 1)
    error = untouched(store, lambda: switch_to(store, 2, signing=NO_SIGNING), SigningError)
    assert "SUPABASE_BRIDGE_SIGNING_KEY_FILE" in str(error)


# --- signing is switched on -------------------------------------------------------------------------------------------


def test_the_first_signed_entry_may_follow_unsigned_ones(store: MemoryStore) -> None:
    switch_to(store, 1, signing=NO_SIGNING)
    switch_to(store, 2, signing=NO_SIGNING)
    with refused_because(Refusal.UNSIGNED):
        believed(store)
    switch_to(store, 3)
    assert believed(store).sequence == 3
    assert named(store) == [3, 2, 1]


def test_what_is_current_can_be_signed_without_a_promotion(store: MemoryStore) -> None:
    before = switch_to(store, 1, signing=NO_SIGNING).entry
    reissue(store, LATEST, now=NOON + timedelta(days=1), signing=FIRST)
    manifest = believed(store)
    assert (manifest.sequence, manifest.current.run_id) == (2, before.current.run_id)
    assert (manifest.cause, manifest.current.published_at) == (before.cause, before.current.published_at)
    assert manifest.confirmed_at == NOON + timedelta(days=1)
    assert "model.sig" in manifest.current.files


def test_a_confirmed_entry_is_still_the_switch_of_its_event(store: MemoryStore) -> None:
    switch_to(store, 1)
    reissue(store, LATEST, now=NOON, signing=FIRST)
    assert not switch_to(store, 1, event(2)).activated
    assert switch_to(store, 1).activated
    assert len(entries(store)) == 2


def test_the_next_switch_after_a_confirmation_is_as_old_as_it_is(store: MemoryStore) -> None:
    switch_to(store, 1)
    reissue(store, LATEST, now=NOON, signing=FIRST)
    assert switch_to(store, 2).entry.confirmed_at is None


def test_a_channel_that_was_never_promoted_to_cannot_be_confirmed(store: MemoryStore) -> None:
    untouched(store, lambda: reissue(store, LATEST, now=NOON, signing=FIRST), ChannelNotFoundError)


# --- keys are replaced ------------------------------------------------------------------------------------------------


def test_a_key_is_replaced_step_by_step(store: MemoryStore) -> None:
    """Old alone; both trusted; the new one signs; what is current is signed again; the old one is trusted no longer."""
    switch_to(store, 1)
    overlap = sealed("second", "first", "second")
    switch_to(store, 2, signing=sealed("first", "first", "second"))
    assert believed(store).sequence == 2
    switch_to(store, 3, signing=overlap)
    assert believed(store, "first", "second").sequence == 3
    for number in (1, 2, 3):
        store.delete([keys_of(number).signature])
        sign_release(store, keys_of(number), signing=overlap)
    reissue(store, LATEST, now=NOON, signing=overlap)
    alone = sealed("second")
    assert believed(store, "second").sequence == 4
    assert switch_to(store, 1, event(9), signing=alone).entry.sequence == 5
    assert believed(store, "second").current.model_version == 1
    with refused_because(Refusal.UNKNOWN_KEY):
        believed(store, "first")


def test_an_old_key_dropped_too_early_stops_the_writer_and_is_named(store: MemoryStore) -> None:
    switch_to(store, 1)
    error = untouched(store, lambda: switch_to(store, 2, signing=sealed("second")), Exception)
    assert "not trusted" in str(error)


# --- a forger ---------------------------------------------------------------------------------------------------------


def test_an_unsigned_entry_after_a_signed_one_is_not_built_upon(store: MemoryStore) -> None:
    switch_to(store, 1)
    forge(store, 2)
    error = untouched(store, lambda: switch_to(store, 2), UntrustedLogError)
    assert LATEST.history(2) in str(error)
    assert "delete the object" in str(error)


def test_unsigned_entries_above_a_gap_are_not_taken_for_old_ones(store: MemoryStore) -> None:
    for number in (1, 2):
        switch_to(store, number)
    forge(store, 3)
    forge(store, 4)
    store.delete([LATEST.history(2), LATEST.history(3)])
    store.overwrite(LATEST.manifest, store.read(LATEST.history(4), limit_bytes=10**6), PLAIN)
    untouched(store, lambda: switch_to(store, 3), UntrustedLogError)


def test_the_entry_of_a_stranger_is_not_built_upon(store: MemoryStore) -> None:
    switch_to(store, 1)
    forge(store, 2, sign="stranger")
    untouched(store, lambda: switch_to(store, 2), UntrustedLogError)


def test_a_changed_entry_is_not_built_upon(store: MemoryStore) -> None:
    entry = switch_to(store, 1).entry
    changed = entry.model_copy(update={"release_notes": "harmless"})
    store.overwrite(LATEST.history(1), changed.to_bytes(), PLAIN)
    untouched(store, lambda: switch_to(store, 2), UntrustedLogError)


def test_after_the_forged_entry_is_deleted_the_log_goes_on(store: MemoryStore) -> None:
    switch_to(store, 1)
    forge(store, 2)
    store.delete([LATEST.history(2)])
    assert switch_to(store, 2).entry.sequence == 2
    assert believed(store).sequence == 2


def test_a_manifest_edited_by_hand_is_put_back_and_not_signed(store: MemoryStore) -> None:
    for number in (1, 2):
        switch_to(store, number)
    right = published(store)
    edited = Manifest.parse(right).model_copy(update={"release_notes": "edited", "signature": None})
    store.overwrite(LATEST.manifest, edited.to_bytes(), PLAIN)
    Channel(store, LATEST, FIRST).repair_manifest()
    assert published(store) == right
    assert len(entries(store)) == 2


def test_a_manifest_that_claims_a_later_sequence_does_not_move_the_log(store: MemoryStore) -> None:
    switch_to(store, 1)
    edited = Manifest.parse(published(store)).model_copy(update={"sequence": 7_000_000})
    store.overwrite(LATEST.manifest, edited.to_bytes(), PLAIN)
    assert switch_to(store, 2).entry.sequence == 2
    assert believed(store).sequence == 2


def test_a_forged_older_entry_does_not_pass_for_the_switch_that_an_event_asks_for(store: MemoryStore) -> None:
    """By hand the newest entry has no event, so that the search for an event's own entry goes below it."""
    switch_to(store, 1)
    activate_manually(store, LATEST, run_id(2), now=NOON, signing=FIRST)
    for name in (None, "stranger"):
        forge(store, 1, sign=name, cause=event(3))
        before = len(entries(store))
        assert switch_to(store, 3).entry.current.model_version == 3
        assert len(entries(store)) == before + 1
        store.delete([LATEST.history(before + 1)])
        Channel(store, LATEST, FIRST).repair_manifest()


def test_what_an_unsigned_log_says_of_other_places_is_never_signed(store: MemoryStore) -> None:
    entry = switch_to(store, 1, signing=NO_SIGNING).entry
    elsewhere = entry.current.model_copy(update={"onnx_path": "other/model.onnx"})
    forge(store, 2, current=elsewhere)
    error = untouched(store, lambda: switch_to(store, 2), ManifestRefusedError)
    assert isinstance(error, ManifestRefusedError)
    assert error.reason is Refusal.PATH


def test_nothing_that_only_reads_the_log_believes_a_forged_entry(store: MemoryStore) -> None:
    switch_to(store, 1)
    switch_to(store, 2)
    forge(store, 3)
    log = Channel(store, LATEST, FIRST)
    for act in (log.read_head, log.repair_manifest, lambda: release_before(store, LATEST, signing=FIRST)):
        untouched(store, act, UntrustedLogError)
