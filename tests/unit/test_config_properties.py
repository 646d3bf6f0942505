"""Configuration: any document gives a configuration or names what is wrong, and no places overlap."""

import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.config_errors import ConfigError
from bqdispatch_provider.config_keys import KEYS

VALID = {
    "ProjectID": "my-project",
    "Region": "eu",
    "AsyncTaskURL": "gs://ops/BqDispatch/Tasks/",
    "JournalURL": "gs://ops/journal",
    "ErrorURL": "gs://ops/errors",
    "TriggerBucket": "mine",
    "TimeToLiveInMin": 1,
    "CheckInMs": 0,
    "MaxConcurrentSQL": 5,
    "MaxConcurrentJobs": 10,
    "MaxConcurrentLoad": 10,
    "MaxTriggerDelayMs": 1000,
    "PostJobPrefix": "/_bqjob_/",
    "BatchPrefix": "/_batch_/",
    "MaxWritesPerSecond": 500,
    "OnDoubt": "quarantine",
    "SlackCredentials": {"URL": "gs://ops/slack.json.enc", "Key": "ring/key"},
    "RulesURL": "gs://ops/rules",
}
TEXTS = ["gs://abc/d", "gs://abc", "gs://a//b", "s3://abc/d", "${v}", "${none}", "${", "/", "//", "a\nb", "\ud800", ""]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(TEXTS)
JSON = st.recursive(
    SCALARS | st.sampled_from([10**30, 10**400, -(10**400)]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.sampled_from(["URL", "Key"]), inner),
    max_leaves=6,
)
CASES = st.sampled_from([str, str.lower, str.upper, str.swapcase])
VARIABLES = st.dictionaries(st.sampled_from(["v", "w"]), SCALARS | st.sampled_from(["${v}", "${w}"]))


def refused(document, variables=None):
    with pytest.raises(ConfigError) as caught:
        DispatchConfig.from_dict(document, variables)
    return caught.value.findings


def names_a_key(finding):
    return finding.split()[0].partition(".")[0] in {*KEYS, "MaxConcurrentLoad"} or finding.startswith("the document")


@st.composite
def mutations(draw):
    """A valid document with some keys gone, replaced, or written otherwise."""
    document = {draw(CASES)(key): value for key, value in VALID.items() if draw(st.integers(0, 9)) > 0}
    for key in draw(st.sets(st.sampled_from(sorted(document) or ["x"]), max_size=3)):
        document[key] = draw(JSON | st.sampled_from([value for value in VALID.values() if isinstance(value, str)]))
    return document | draw(st.dictionaries(st.text(), JSON, max_size=1))


@given(mutations() | JSON, VARIABLES)
def test_any_document_gives_a_configuration_or_names_the_key_that_is_wrong(document, variables):
    try:
        made = DispatchConfig.from_dict(document, variables)
        assert made.for_project("my-project").trigger_bucket
    except ConfigError as error:
        assert error.findings
        assert all(map(names_a_key, error.findings)), error.findings
        assert str(error).count("\n") == len(error.findings)
        str(error).encode()
    else:
        for url in (made.async_task_url, made.journal_url, made.error_url):
            assert url.startswith("gs://")
            url.encode()
        assert made == DispatchConfig.from_dict(document, variables)


@given(st.text() | mutations().map(lambda document: json.dumps(document, default=str)) | st.binary())
def test_any_text_gives_a_configuration_or_a_message(text):
    try:
        made = DispatchConfig.from_json(text, {"v": "x"})
    except ConfigError as error:
        assert all(map(names_a_key, error.findings))
    else:
        assert made == DispatchConfig.from_dict(json.loads(text), {"v": "x"})


def test_a_number_that_python_does_not_print_is_told_without_it():
    assert refused({**VALID, "CheckInMs": 10**5000}) == [
        "CheckInMs is a huge number; expected a whole number, 0 to 10,000,000,000"
    ]


@given(st.permutations(list(VALID)), st.lists(CASES, min_size=len(VALID), max_size=len(VALID)))
def test_neither_the_order_nor_the_case_of_keys_matters(keys, cases):
    document = {case(key): VALID[key] for key, case in zip(keys, cases, strict=True)}
    assert DispatchConfig.from_dict(document) == DispatchConfig.from_json(json.dumps(VALID))


@given(st.lists(st.sampled_from(["${v}", "${w}", "x", "$", "{", "}"]), min_size=1).map("".join))
def test_a_variables_value_is_taken_as_it_is(value):
    made = DispatchConfig.from_dict({**VALID, "JournalURL": "gs://ops/j/${v}"}, {"v": value, "w": "W"})
    assert made.journal_url == f"gs://ops/j/{value}/"


def test_an_objects_url_is_checked_as_it_is_with_its_variables():
    (finding,) = refused({**VALID, "JournalURL": "gs://ops/${v}"}, {"v": "\ud800"})
    assert finding.startswith("JournalURL is 'gs://ops/${v}'; expected text that can be encoded")


@pytest.mark.parametrize("value", [None, True, {"a": "hush"}, ["hush"]])
def test_a_variable_is_text_or_a_number(value):
    (finding,) = refused({**VALID, "JournalURL": "gs://ops/${v}"}, {"v": value})
    assert finding.startswith("JournalURL asks for the variable ${v}, which is ")
    assert "hush" not in finding
    assert DispatchConfig.from_dict({**VALID, "JournalURL": "gs://ops/${v}"}, {"v": 7}).journal_url == "gs://ops/7/"


@pytest.mark.parametrize("key", [key for key, value in VALID.items() if isinstance(value, str) and key != "RulesURL"])
def test_the_value_of_a_variable_is_not_shown_whatever_the_key(key):
    try:
        made = DispatchConfig.from_dict({**VALID, key: "${v}"}, {"v": "hush hush\n//"})
    except ConfigError as error:
        assert "hush" not in str(error)
    else:
        assert key == "Region"
        assert made.region == "hush hush\n//"


@pytest.mark.parametrize(
    "slack",
    [
        {"URL": "gs://ops/slack", "Key": "xoxb-hush"},
        {"URL": "gs://ops/slack", "Key": "hush/hush/hush"},
        {"URL": "gs://ops/slack", "Key": "projects/hush"},
        {"URL": "xoxb-hush", "Key": "ring/key"},
        {"URL": "gs://ops/slack", "Key": 7},
        {"Token": "xoxb-hush"},
        ["xoxb-hush"],
    ],
)
def test_slack_credentials_say_where_the_token_lies_and_are_not_the_token(slack):
    for finding in refused({**VALID, "SlackCredentials": slack}):
        assert finding.startswith("SlackCredentials")
        assert "hush" not in finding


def test_keys_are_one_line_of_the_log_whatever_is_in_them(caplog):
    with caplog.at_level(logging.INFO):
        DispatchConfig.from_dict({**VALID, "x\nINFO all is well\x1b[2J": 1})
    (record,) = caplog.records
    assert record.getMessage().isprintable()
    (finding,) = refused({**VALID, "JournalURL": "gs://ops/${a\nb}"})
    assert finding.isprintable()


TASKS = "gs://ops/BqDispatch/Tasks/"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"AsyncTaskURL": "gs://mine/tasks"}, ["AsyncTaskURL"]),
        ({"AsyncTaskURL": "gs://mine"}, ["AsyncTaskURL"]),
        ({"JournalURL": "gs://mine/journal"}, ["JournalURL"]),
        ({"ErrorURL": "gs://mine"}, ["ErrorURL"]),
        ({"JournalURL": TASKS}, ["JournalURL"]),
        ({"JournalURL": f"{TASKS}journal"}, ["JournalURL"]),
        ({"ErrorURL": f"{TASKS}intents"}, ["ErrorURL"]),
        ({"ErrorURL": f"{TASKS}undecided/"}, ["ErrorURL"]),
        ({"JournalURL": f"{TASKS}~ledger"}, ["JournalURL"]),
        ({"AsyncTaskURL": "gs://ops"}, ["JournalURL", "ErrorURL"]),
        ({"ErrorURL": "gs://ops/BqDispatch"}, ["AsyncTaskURL"]),
        ({"ErrorURL": "gs://ops"}, ["AsyncTaskURL"]),
        ({"JournalURL": "gs://ops/journal", "AsyncTaskURL": "gs://ops/journal/runs"}, ["AsyncTaskURL"]),
        ({"JournalURL": "gs://ops/journal", "AsyncTaskURL": "gs://ops/journal/runs/x/"}, ["AsyncTaskURL"]),
        ({"JournalURL": "gs://ops/journal/", "ErrorURL": "gs://ops/journal/runs"}, ["ErrorURL"]),
        ({"PostJobPrefix": "/x/", "BatchPrefix": "x"}, ["PostJobPrefix"]),
        ({"PostJobPrefix": "/x/", "BatchPrefix": "/x/y/"}, ["PostJobPrefix"]),
        ({"PostJobPrefix": "/_batch_/jobs/"}, ["PostJobPrefix"]),
    ],
)
def test_places_that_get_in_each_others_way_are_refused_before_anything_is_touched(more, said):
    assert [finding.split()[0] for finding in refused({**VALID, **more})] == said


@pytest.mark.parametrize(
    "more",
    [
        {"JournalURL": "gs://ops/BqDispatch/TasksJournal", "ErrorURL": "gs://ops/BqDispatch/Tasks2"},
        {"JournalURL": "gs://ops/BqDispatch"},
        {"JournalURL": "gs://ops/journal", "ErrorURL": "gs://ops/journal/errors"},
        {"JournalURL": "gs://ops", "ErrorURL": "gs://ops/errors"},
        {"AsyncTaskURL": "gs://tasks", "JournalURL": "gs://ops", "ErrorURL": "gs://ops"},
        {"PostJobPrefix": "/x/", "BatchPrefix": "/xy/"},
        {"AsyncTaskURL": "gs://mine2/tasks"},
    ],
)
def test_places_side_by_side_are_fine(more):
    assert DispatchConfig.from_dict({**VALID, **more})


def test_the_trigger_bucket_that_follows_from_the_project_is_held_to_the_same():
    document = {key: value for key, value in VALID.items() if key not in ("TriggerBucket", "ProjectID")}
    for key in ("AsyncTaskURL", "JournalURL", "ErrorURL"):
        made = DispatchConfig.from_dict({**document, key: "gs://my_project_bqtail/x"})
        with pytest.raises(ConfigError, match=f"{key} .* lies in the TriggerBucket"):
            made.for_project("example.com:my-project")
