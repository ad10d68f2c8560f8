"""Which checkpoints count, where ids go on, and which transactions must be looked for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios_ray.errors import CheckpointNotFoundError
from helios_ray.protocol.recovery import (
    Catalog,
    CheckpointSummary,
    abandoned_ids,
    first_checkpoint_id,
    pick_restore,
    still_owner,
    usurper,
    valid_checkpoints,
)
from helios_ray.records import EpochRecord, RestoreRecord


def catalog(
    restores: dict[int, tuple[int | None, int]],
    checkpoints: dict[int, int],
    *,
    headroom: int = 3,
    epochs: dict[int, str] | None = None,
) -> Catalog:
    """Restores are ``epoch: (resumed from, first id)``; checkpoints are ``id: epoch``."""
    owners = epochs or dict.fromkeys(restores, "o")
    return Catalog(
        epochs=tuple(
            EpochRecord(epoch=e, owner=owner, headroom=headroom) for e, owner in owners.items()
        ),
        restores=tuple(
            RestoreRecord(epoch=e, owner="o", checkpoint_id=c, first_checkpoint_id=f)
            for e, (c, f) in restores.items()
        ),
        checkpoints=tuple(
            CheckpointSummary(checkpoint_id=n, epoch=e, committed=False)
            for n, e in checkpoints.items()
        ),
    )


@pytest.mark.parametrize(
    ("restores", "checkpoints", "valid"),
    [
        pytest.param({}, {}, [], id="nothing"),
        pytest.param({1: (None, 1)}, {1: 1, 2: 1}, [1, 2], id="own"),
        pytest.param({1: (None, 1), 2: (2, 6)}, {1: 1, 2: 1, 6: 2}, [1, 2, 6], id="inherited"),
        pytest.param({1: (None, 1), 2: (2, 6)}, {2: 1, 3: 1, 6: 2}, [2, 6], id="late-manifest"),
        pytest.param({1: (None, 1), 2: (None, 6)}, {2: 1, 6: 2}, [6], id="from-nothing"),
        pytest.param(
            {1: (None, 1), 2: (2, 6), 3: (1, 9)}, {1: 1, 2: 1, 6: 2, 9: 3}, [1, 9], id="went-back"
        ),
        pytest.param(
            # Epoch 2's record landed after epoch 3 had chosen a later manifest of epoch 1.
            {1: (None, 1), 2: (2, 6), 3: (3, 6)},
            {2: 1, 3: 1},
            [2, 3],
            id="late-restore-record",
        ),
    ],
)
def test_what_counts_is_the_line_that_the_newest_epoch_resumed_from(
    restores: dict[int, tuple[int | None, int]], checkpoints: dict[int, int], valid: list[int]
) -> None:
    found = [c.checkpoint_id for c in valid_checkpoints(catalog(restores, checkpoints))]
    assert found == valid


def test_latest_is_the_newest_that_counts_and_an_id_must_count() -> None:
    known = catalog({1: (None, 1), 2: (2, 6)}, {2: 1, 3: 1})
    latest = pick_restore(known, "latest")
    assert latest is not None
    assert latest.checkpoint_id == 2
    assert pick_restore(known, None) is None
    assert pick_restore(Catalog(), "latest") is None
    with pytest.raises(CheckpointNotFoundError, match=r"no checkpoint 3 .* the job has \[2\]"):
        pick_restore(known, 3)


def test_ids_go_on_beyond_what_an_older_epoch_may_have_used_without_a_trace() -> None:
    assert first_checkpoint_id(Catalog()) == 1
    assert first_checkpoint_id(catalog({1: (None, 1)}, {})) == 4
    assert first_checkpoint_id(catalog({1: (None, 1)}, {5: 1})) == 9
    assert first_checkpoint_id(catalog({1: (None, 1), 2: (5, 9)}, {5: 1})) == 12
    # A manifest of epoch 1 that landed late does not bring ids back to where epoch 2 is.
    assert first_checkpoint_id(catalog({1: (None, 1), 2: (5, 9)}, {5: 1, 6: 1, 20: 2})) == 24


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans(), st.booleans()), max_size=8))
def test_probes_cover_every_id_that_an_older_epoch_may_have_prepared_and_lost(
    history: list[tuple[int, bool, bool]],
) -> None:
    """Each epoch completes some checkpoints, goes on to the end of its headroom, and dies."""
    headroom = 3
    restores: dict[int, tuple[int | None, int]] = {}
    checkpoints: dict[int, int] = {}
    prepared: set[tuple[int, int]] = set()
    decided: set[tuple[int, int]] = set()
    for epoch, (completes, goes_on, prepares) in enumerate(history, 1):
        known = catalog(restores, checkpoints, headroom=headroom)
        chosen = pick_restore(known, "latest")
        first = first_checkpoint_id(known)
        assert not any(n >= first for _, n in prepared)
        restores[epoch] = (None if chosen is None else chosen.checkpoint_id, first)
        last = first + completes - 1
        for n in range(first, last + 1):
            checkpoints[n] = epoch
            decided.add((epoch, n))
        if prepares:
            end = last + (headroom if goes_on else 1)
            prepared |= {(epoch, n) for n in range(first, end + 1)}
    known = catalog(restores, checkpoints, headroom=headroom)
    restored = pick_restore(known, "latest")
    probes = {
        (epoch, n)
        for epoch, first, last in abandoned_ids(known, restored)
        for n in range(first, last + 1)
    }
    assert prepared - decided <= probes
    assert not probes & decided


def test_ownership_is_lost_to_any_newer_epoch_but_only_others_usurp() -> None:
    assert still_owner((1, 2, 3), 3)
    assert not still_owner((1, 2, 4), 3)
    known = catalog({}, {}, epochs={1: "me", 2: "them", 3: "me"})
    assert usurper(known, 1, "me") == 2
    assert usurper(known, 3, "me") is None
    assert usurper(known, 1, "them") == 3
