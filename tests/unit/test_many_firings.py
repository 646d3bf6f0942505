"""A listing that is searched for each of many firings is gone through once."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.core.listing import StoredObject, classify
from bqdispatch_provider.core.model import Job
from bqdispatch_provider.core.windows import Firing, OpenFiring
from bqdispatch_provider.delivery.evidence import Evidence
from bqdispatch_provider.delivery.firings_found import FiringsFound, UnconsumedFirings
from bqdispatch_provider.delivery.open_firings import OpenFirings, _State

NOW = datetime(2026, 1, 2, tzinfo=UTC)
WINDOW = "ds.t_7_1700000000.win"
PLACES = {"AsyncTaskURL": "gs://ops/BqDispatch/Tasks/", "JournalURL": "gs://ops/journal", "ErrorURL": "gs://ops/errors"}
CONFIG = DispatchConfig.from_dict({**PLACES, "ProjectID": "p"}).for_project(None)


class Counted(tuple):
    """A tuple that counts how often it is gone through."""

    times = 0

    def __iter__(self):
        type(self).times += 1
        return super().__iter__()


def listing_of(*names):
    return classify([StoredObject(name, 2, NOW - timedelta(minutes=5)) for name in names], "p", NOW)


def test_the_traces_are_gone_through_once_for_many_failed_loads():
    class Traces(Counted):
        pass

    listing = listing_of(
        "proj:p:US/ds.t--1_00001_load--dispatch", *(f"proj:p:US/ds.t--{n}_00001_load--d" for n in "23")
    )
    object.__setattr__(listing, "traces", Traces(listing.traces))
    evidence = Evidence(None, None, None, CONFIG, None)
    failed = SimpleNamespace(job_id="ds_t--1_00001_load--dispatch", job=Job("US", "DONE", None, "x"), created=NOW)
    for generation in range(100):
        said = evidence._on_its_way((WINDOW, generation), None, failed, listing)
        assert "has not been dispatched yet" in said
    assert Traces.times == 1


def test_the_windows_are_gone_through_once_for_many_firings_without_a_load():
    class Windows(Counted):
        pass

    listing = listing_of(WINDOW)
    object.__setattr__(listing, "windows", Windows(listing.windows))
    found = FiringsFound(listing, {}, True, UnconsumedFirings(None, (), listing))
    look = OpenFirings(None, None)
    for generation in range(100, 200):
        firing = OpenFiring(WINDOW, generation, "p", "1", many_folders=False, since=NOW)
        assert look._without_load(firing, Firing(NOW, NOW), found) is _State.KEPT
    assert Windows.times == 1
