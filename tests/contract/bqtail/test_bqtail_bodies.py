"""What the stand-in BqTail writes is what the real one wrote: its names, folders and fields, object by object."""

import json
import posixpath
import re
from dataclasses import replace
from pathlib import Path

import pytest

from bqdispatch_provider.testing.bqtail.actions import load_action, trace_of
from bqdispatch_provider.testing.bqtail.bodies import TraceBody, UnreadableBodyError, WindowBody, location_name
from bqdispatch_provider.testing.bqtail.settings import Rule

OBJECTS = [json.loads(line) for line in (Path(__file__).parent / "bqtail_objects.jsonl").read_text().splitlines()]
FOLDER = "BqDispatch/Tasks/"
TASK_URL = f"gs://acme_shop_bqdispatch/{FOLDER}"
BY_NAME = {each["name"].removeprefix(FOLDER): each["body"] for each in OBJECTS}
WINDOWS = [name for name in BY_NAME if name.endswith(".win")]
LOCATIONS = [name for name in BY_NAME if name.endswith(".loc")]
TRACES = [name for name in BY_NAME if name.startswith("proj:")]

MANY = Rule(
    multi_path=True,
    transient_dataset="temp_west",
    transient_location="europe-west1",
    balancer=("acme-ops", "other-proj"),
    chain=("load", "copy"),
    then=("call", "delete"),
    on_failure=("call",),
)
RULES = {
    "sales.orders": Rule(chain=("load", "copy", "query"), then=("call",), on_failure=("call",)),
    "acme-ops:web.hits": Rule(
        transient_dataset=None, dml=True, chain=("load", "query"), then=("call", "delete"), on_failure=("call",)
    ),
    "acme-shop:web.hits_202601": MANY,
    "acme-shop:web.hits_202602": MANY,
}
ONE_STEP_AFTER_THE_OTHER = [name for name in TRACES if TraceBody.from_json(BY_NAME[name].encode()).dest in RULES]


def test_there_is_one_of_each():
    assert len(WINDOWS) == 3 and len(LOCATIONS) == 2 and len(TRACES) == 15 and len(ONE_STEP_AFTER_THE_OTHER) == 9


@pytest.mark.parametrize("name", WINDOWS)
def test_a_window_is_named_and_filled_as_the_real_one(name):
    window = WindowBody.from_json(BY_NAME[name].encode())
    many = any(other.startswith(name.removesuffix(".win") + "/") for other in LOCATIONS)
    again = WindowBody.of(window.process, TASK_URL, window.start, window.end, many)
    assert again == window and window.name == name
    assert json.loads(again.to_json()) == json.loads(BY_NAME[name])


@pytest.mark.parametrize("name", LOCATIONS)
def test_a_location_lies_beside_its_window_under_the_hash_of_its_folder(name):
    (window,) = [each for each in WINDOWS if name.startswith(each.removesuffix(".win") + "/")]
    assert location_name(window, BY_NAME[name]) == name
    assert BY_NAME[name] == WindowBody.from_json(BY_NAME[window].encode()).process.folder


@pytest.mark.parametrize("name", TRACES)
def test_a_trace_of_the_real_one_is_read(name):
    trace = TraceBody.from_json(BY_NAME[name].encode())
    assert trace.name == name
    assert trace.is_traced and trace.is_load == ("_load--" in name) == bool(trace.sources)


@pytest.mark.parametrize("name", ONE_STEP_AFTER_THE_OTHER)
def test_a_trace_is_named_and_filled_as_the_real_one(name):
    """Its steps are found by following the chain from the load on, as BqTail does."""
    real = TraceBody.from_json(BY_NAME[name].encode())
    (load,) = [each for each in TRACES if f"--{real.event_id}_00001_load--" in each]
    trace = TraceBody.from_json(BY_NAME[load].encode())
    rule = RULES[real.dest]
    locations = sorted(set(re.findall(r"gs://[^\"]+\.loc", BY_NAME[load])))
    process = trace.process if real.dest != "sales.orders" else without_project(trace.process)
    action = load_action(process, rule, (rule.chain, rule.then, rule.on_failure), trace.sources, locations)
    while action["Meta"]["Step"] < real.step:
        (action,) = [each for each in action["OnSuccess"] if each["Action"] in ("copy", "query")]
    ours = trace_of(action, "acme-shop", real.location)
    assert ours.name == name
    assert ours.job_id == real.job_id
    assert shape(ours.document["Meta"]) == shape(real.document["Meta"])
    assert shape(ours.document["Job"]) == shape(real.document["Job"])
    assert shape(comparable(ours.document["Request"])) == shape(comparable(real.document["Request"]))
    for kind, fields in actions(real.document).items():
        assert actions(ours.document).get(kind, fields) == fields, kind
    if rule is MANY:
        assert plain(ours.document) == plain(real.document)


def test_a_body_that_nobody_can_read_is_named_as_such():
    for reader in (WindowBody, TraceBody):
        for body in (b".", b"[]", b"{}", b"[" * 100_000, b'{"Meta": 1}', b'{"Source": {}, "URL": 3}'):
            with pytest.raises(UnreadableBodyError):
                reader.from_json(body)


def without_project(process):
    """The event of a rule whose transient table lies in the project of the configuration: the load's trace names it."""
    return replace(process, project=None)


def comparable(value):
    """Without what Go writes of every field of a load's configuration that is not set."""
    if isinstance(value, dict):
        pairs = ((name, comparable(each)) for name, each in value.items())
        return {name: each for name, each in pairs if each not in (None, False, 0, "", [], {})}
    return [comparable(each) for each in value] if isinstance(value, list) else value


def plain(action):
    """Without what no stand-in knows: where a rule's calls go; and what is read back of an empty list."""
    document = json.loads(re.sub(r"http://callback.example[^\"]*", "", json.dumps(action)))

    def walk(each):
        each["Request"] = comparable(each["Request"])
        each["Job"] = comparable(each.get("Job", {}))
        for child in (*each.get("OnSuccess", ()), *each.get("OnFailure", ())):
            walk(child)
        return each

    return walk(document)


def shape(value, path=""):
    """Every field with its type."""
    if isinstance(value, dict):
        return {each for name, item in value.items() for each in shape(item, posixpath.join(path, name))}
    if isinstance(value, list):
        return {each for item in value for each in shape(item, f"{path}[]")} or {(path, "list")}
    return {(path, type(value).__name__)}


def actions(document):
    """By kind of the actions that follow a job, the fields of each."""
    found = {}
    for each in (*document.get("OnSuccess", ()), *document.get("OnFailure", ())):
        own = {name: value for name, value in each.items() if name not in ("OnSuccess", "OnFailure")}
        own["Request"] = comparable(own["Request"])
        found.setdefault(each["Action"], set()).update(shape(own))
        for kind, fields in actions(each).items():
            found.setdefault(kind, set()).update(fields)
    return found
