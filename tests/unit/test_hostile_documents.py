"""A document that anybody may have written is refused by its reader, or can be used to the end."""

import copy
import gc
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.core import documents
from bqdispatch_provider.core.events import Share
from bqdispatch_provider.core.history import Figures, Hour, NewFigures, looks
from bqdispatch_provider.core.model import Lane, Outcome, Reason
from bqdispatch_provider.core.process_sums import sums_of
from bqdispatch_provider.core.report import MAX_NAMED, Report
from bqdispatch_provider.core.waits import Wait, waits_from_dict, waits_to_dict
from bqdispatch_provider.page.series import Range, Selection, last_hour, series, total
from bqdispatch_provider.view.health import silent_after
from bqdispatch_provider.view.overview import overview

NOW = datetime(2026, 1, 1, 12, 7, tzinfo=UTC)
CONFIG = DispatchConfig.from_dict({"AsyncTaskURL": "gs://ops/x", "JournalURL": "gs://ops/j", "ErrorURL": "gs://ops/e"})
ODD = [
    None,
    True,
    -1,
    1e400,
    -1e400,
    float("nan"),
    10**4000,
    0.5,
    "",
    "x",
    "\ud800",
    "2026-01-01T00:00:00",
    "0001-01-01T00:00:00+14:00",
    [],
    [None],
    [["x"]],
    ["\ud800"],
    {},
    {"x": None},
    {"x": 0},
    {"x": 1},
    {"x": "y"},
    {"x": 1e400},
    {"x": float("nan")},
    {"\ud800": 1},
    {"x": {"x": 1}},
    {"99:99999999999999999999": {}},
]


def report():
    job = {"Project": "p", "Region": "US", "ID": "j", "URL": "u", "Status": "DONE"}
    job |= {"EndTime": NOW.isoformat(), "DispatchTime": NOW.isoformat()}
    made = Report(NOW, 1, 1, 3, jobs={"gs://x/y": job}, batched={"gs://x/w": "t"}, errors=["it"], oldest=NOW)
    made.outcomes[Outcome.DISPATCHED] = 2
    made.quarantined, made.unknown, made.parts = {"gs://x/z": "why"}, {"a": "b"}, {"t": sums_of(made)}
    made.waits = {"n": Wait("n", Reason.REFUSED, NOW, "said", 2)}
    made.regions["p"], made.traces["p"], made.not_found["p"] = "US", 1, 1
    for gauge in ("Running", "Pending", "Dispatched", "Throttled"):
        made.count("p", gauge, "LoadJobs")
    return made


def hour():
    made = Hour()
    made.add(NOW, NewFigures().take(report(), CONFIG), "dag", "gs://x/y", "ticket")
    return made


def share():
    event = ["proj:p:US/ds.t--1_00001_load--dispatch", 1, 1.0, "US", 1.0, "", "ds.t", False, ["p", "e"]]
    return {"lane": str(Lane.JOBS), "planned": 1.0, "events": [event]}


def places(document, path=()):
    """The paths of all that a document holds."""
    yield path
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in items:
        yield from places(value, (*path, key))


def variants(document):
    """A document with each of its parts replaced by something odd, one at a time."""
    for path in places(document):
        for odd in ODD:
            made = copy.deepcopy(document)
            if not path:
                yield odd
                continue
            part = made
            for key in path[:-1]:
                part = part[key]
            part[path[-1]] = odd
            yield made


def use_report(document):
    read = Report.from_dict(document)
    whole = report()
    whole.merge(read)
    whole.continue_with("t", read)
    whole.add_part(read)
    whole.add_cycle(read)
    shown = [overview(read, CONFIG, NOW, Figures(), project=project).to_dict() for project in ("", "p")]
    return [whole.to_dict(), whole.in_words(), NewFigures().take(whole, CONFIG).to_dict(), shown]


def use_hour(document):
    read = Hour.from_dict(document, NOW.replace(minute=0))
    read.add(NOW, NewFigures().take(report(), CONFIG))
    whole = NewFigures().take(report(), CONFIG)
    for figures in read.spans.values():
        whole.add(figures)
    hours = {NOW.replace(minute=0): read}
    selections = [Selection(span, project) for span in Range for project in ("", "p")]
    shown = [[series(hours, each, NOW), total(hours, each, NOW).to_dict()] for each in selections]
    silence = silent_after(looks(hours))
    shown += [
        overview(report(), CONFIG, NOW, last_hour(hours, NOW), silence=silence, project=each.project).to_dict()
        for each in selections
    ]
    return [read.to_dict(), whole.to_dict(), whole.lag(0.5), shown]


def use_share(document):
    return Share.from_dict(document).to_dict()


def use_waits(document):
    return waits_to_dict(each.continued_from(each) for each in waits_from_dict(document).values())


@pytest.mark.parametrize(
    ("document", "use"),
    [
        (report().to_dict(), use_report),
        (hour().to_dict(), use_hour),
        (share(), use_share),
        (waits_to_dict(report().waits.values()), use_waits),
    ],
    ids=["report", "hour", "share", "waits"],
)
def test_an_odd_document_is_refused_or_of_use(document, use):
    wrong = {}
    assert use(copy.deepcopy(document))
    for variant in variants(document):
        try:
            # As it is written, and as every reader can read it.
            json.dumps(use(documents.parse(json.dumps(variant).encode())), ensure_ascii=False, allow_nan=False).encode()
        except ValueError as error:
            if not {"from_dict", "waits_from_dict", "parse"}.intersection(trace_of(error)):
                wrong[str(variant)[:300]] = repr(error)[:200]
        except Exception as error:
            wrong[str(variant)[:300]] = repr(error)[:200]
    assert wrong == {}


def trace_of(error):
    """The functions that an error came through."""
    names, frame = [], error.__traceback__
    while frame is not None:
        names.append(frame.tb_frame.f_code.co_name)
        frame = frame.tb_next
    return names


def test_a_refused_document_is_shown_in_short():
    for made in ({**share(), "events": [["x" * 100_000] * 3]}, {**share(), "lane": "x" * 100_000}):
        with pytest.raises(ValueError, match="not a") as caught:
            Share.from_dict(made)
        assert len(str(caught.value)) < 600


class Errors(list):
    """A list that counts how often it is searched."""

    searches = 0

    def __contains__(self, value):
        self.searches += 1
        return super().__contains__(value)


def test_beyond_the_errors_that_are_named_none_is_searched_for():
    made = Report(errors=Errors())
    for number in range(20_000):
        made.add_error(f"error {number}")
    assert (len(made.errors), made.errors.searches) == (MAX_NAMED, MAX_NAMED)


def test_no_finalizer_fails_deep_inside_a_nested_document(monkeypatch):
    """Python collects garbage whenever it has made so many objects, also where hardly any stack is left."""

    class Cyclic:
        def __init__(self):
            self.me = self

        def __del__(self):
            sum_to(200)

    def sum_to(number):
        return number + sum_to(number - 1) if number else 0

    failed, threshold = [], gc.get_threshold()
    monkeypatch.setattr(sys, "unraisablehook", failed.append)
    gc.collect()
    try:
        for after in range(500, 1000, 50):
            Cyclic()
            gc.set_threshold(after, 1, 1)
            with pytest.raises(RecursionError):
                documents.loads("[" * 100_000)
            gc.set_threshold(*threshold)
            gc.collect()
    finally:
        gc.set_threshold(*threshold)
    assert (failed, gc.isenabled()) == ([], True)


def test_the_collector_goes_on_when_the_last_of_several_threads_has_read_its_document():
    content = json.dumps([[]] * 2000)

    def read(_):
        assert documents.loads(content)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(read, range(400)))
    assert gc.isenabled()
