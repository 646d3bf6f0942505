"""Findings of one look at open firings (:mod:`~bqdispatch_provider.delivery.open_firings`)."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property

from bqdispatch_provider.core.listing import Listing
from bqdispatch_provider.core.model import Key
from bqdispatch_provider.core.plans import Quarantine
from bqdispatch_provider.core.windows import CLAIM_TIMEOUT, LOAD_IS_LATE, Firing, Firings, OpenFiring
from bqdispatch_provider.delivery.evidence import Evidence
from bqdispatch_provider.gcp.errors import GOOGLE_ERRORS
from bqdispatch_provider.names import in_words

log = logging.getLogger(__name__)


class UnconsumedFirings:
    """The firings that BqTail has not consumed, listed once in a look, and only if they are asked for.

    :param evidence: lists them.
    :param announced: the firings that were announced.
    :param listing: the listing of the task folder.
    """

    def __init__(self, evidence: Evidence, announced: Collection[Key], listing: Listing) -> None:
        self._evidence, self._announced, self._listing = evidence, announced, listing

    @cached_property
    def keys(self) -> set[Key]:
        """Their keys; none if they cannot be listed."""
        return self._listed or set()

    @property
    def is_known(self) -> bool:
        """True if they can be listed."""
        return self._listed is not None

    @cached_property
    def _listed(self) -> set[Key] | None:
        try:
            return self._evidence.unconsumed(self._announced, self._listing)
        except GOOGLE_ERRORS as error:
            log.warning("What BqTail has not consumed cannot be listed, so it is looked up: %s", in_words(error))
            return None


@dataclass
class FiringsFound:
    """One look at open firings: what it is based on, and what it has found.

    :param listing: the listing of the task folder.
    :param ledger: what the ledger says, by the name of the window.
    :param limited: True if firings count at a limit, so that their loads must be looked up each time.
    :param unconsumed: asks which announced firings BqTail has not consumed.
    :param unreadable: names of windows of which the ledger cannot be read: whatever it may say, their firings count.
    :param unlisted: firings whose load is visible, and whose trace may have been written after the listing.
    :param open: firings that count at a limit.
    :param abandoned: windows that were claimed and not fired, and are gone.
    :param dropped: firings without a load, to be marked as undecided.
    :param fired: windows whose loads prove that they were fired, though the ledger does not say so.
    :param gone: firings of which nothing is on its way any more, each with the step of its last load, to be recorded.
    :param completed_intents: intents, old enough to be deleted, whose firings are all closed or left in another intent.
    :param errors: by project, why its jobs cannot be listed.
    """

    listing: Listing
    ledger: Mapping[str, Firings]
    limited: bool
    unconsumed: UnconsumedFirings
    unreadable: set[str] = field(default_factory=set)
    unlisted: set[Key] = field(default_factory=set)
    open: list[OpenFiring] = field(default_factory=list)
    abandoned: list[OpenFiring] = field(default_factory=list)
    dropped: list[Quarantine] = field(default_factory=list)
    fired: list[Key] = field(default_factory=list)
    gone: list[tuple[Key, int]] = field(default_factory=list)
    completed_intents: list[Key] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)
    unproven: dict[str, str] = field(default_factory=dict)
    """By the names of windows whose claims have timed out, why their loads cannot be looked for: nobody may take such a
    claim over."""

    @cached_property
    def generations(self) -> dict[str, int]:
        """The generations of the windows in the task folder, by name."""
        return {window.object.name: window.object.generation for window in self.listing.windows}

    def entry(self, key: Key) -> Firing | None:
        """Return what the ledger says of a firing; ``None`` if it was not claimed.

        :param key: name and generation of the window.
        """
        return self.ledger.get(key[0], {}).get(key[1])

    def has_timed_out(self, since: datetime) -> bool:
        """Return whether a dispatcher that has claimed or announced a firing at a time counts as gone.

        :param since: time of the claim or the announcement, by the server's clock.
        """
        return self.listing.now - since > CLAIM_TIMEOUT

    def may_be_taken_over(self, key: Key) -> bool:
        """Return whether a window was claimed and not fired by a dispatcher that counts as gone.

        :param key: name and generation of the window.
        """
        entry = self.entry(key)
        return entry is not None and entry.fired is None and self.has_timed_out(entry.claimed)

    def late(self, keys: Iterable[Key], after: timedelta = LOAD_IS_LATE) -> list[Key]:
        """Return the firings whose load should be visible by now: those that were fired longer ago than a time.

        :param keys: the firings to choose from.
        :param after: the time; by default that in which a load becomes visible.
        """
        entries = {key: self.entry(key) for key in keys if key[0] not in self.unreadable}
        now = self.listing.now
        return [key for key, entry in entries.items() if entry and entry.fired and now - entry.fired > after]
