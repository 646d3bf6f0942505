"""The configuration document: what it means, and what is said about one that cannot be used."""

import json
import logging
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.config_errors import ConfigError
from bqdispatch_provider.config_keys import SlackCredentials
from bqdispatch_provider.config_source import MAX_DOCUMENT_BYTES

PLACES = {"AsyncTaskURL": "gs://ops/BqDispatch/Tasks/", "JournalURL": "gs://ops/journal", "ErrorURL": "gs://ops/errors"}


def config(**more):
    return DispatchConfig.from_dict({**PLACES, **more})


def findings(document, variables=None):
    with pytest.raises(ConfigError) as caught:
        DispatchConfig.from_dict(document, variables)
    for finding in caught.value.findings:
        assert finding in str(caught.value)
    return caught.value.findings


def test_defaults_are_the_protocols():
    made = config()
    assert (made.region, made.time_to_live_in_min, made.check_in_ms) == ("us-central1", 1, 0)
    assert (made.max_concurrent_sql, made.max_concurrent_jobs, made.max_trigger_delay_ms) == (0, 0, 120_000)
    assert made.max_unknown_job_min == 1440
    assert made.max_writes_per_second == 5000
    assert (made.post_job_prefix, made.batch_prefix) == ("/_bqjob_/", "/_batch_/")
    assert (made.project_id, made.trigger_bucket, made.slack_credentials) == (None, None, None)


def test_the_document_of_the_page_is_valid():
    """The document of docs/configuration.md, and what the page says of its trigger bucket."""
    page = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
    document = re.search(r"```json\n(.*?)```", page, re.DOTALL)[1]
    made = DispatchConfig.from_json(document).for_project(None)
    assert made.trigger_bucket == "acme_ops_bqtail"
    assert (made.max_concurrent_sql, made.max_concurrent_jobs, made.misspelt) == (50, 20, {})
    assert len(document.splitlines()) == len(json.loads(document)) == 6


def test_trigger_bucket_follows_from_the_project():
    assert config(ProjectID="my-project-1").for_project(None).trigger_bucket == "my_project_1_bqtail"
    assert config().for_project("other-one").trigger_bucket == "other_one_bqtail"
    assert config(TriggerBucket="mine-x").for_project("p").trigger_bucket == "mine-x"


def test_a_project_is_needed_from_somewhere():
    with pytest.raises(ConfigError, match="ProjectID is missing"):
        config().for_project(None)


@pytest.mark.parametrize("key", ["MaxConcurrentJobs", "MaxConcurrentLoad"])
def test_the_limit_of_jobs_has_two_names(key):
    assert config(**{key: 7}).max_concurrent_jobs == 7


def test_two_different_limits_of_jobs_are_refused():
    assert findings({**PLACES, "MaxConcurrentJobs": 1, "MaxConcurrentLoad": 2}) == [
        "MaxConcurrentLoad is 2; expected the same as MaxConcurrentJobs (1)"
    ]
    assert config(MaxConcurrentJobs=3, MaxConcurrentLoad=3).max_concurrent_jobs == 3


def test_variables_are_filled_in_everywhere():
    made = DispatchConfig.from_dict(
        {**PLACES, "JournalURL": "gs://${b}/${f}", "SlackCredentials": {"URL": "gs://${b}/slack", "Key": "${f}/key"}},
        {"b": "bucket", "f": "folder"},
    )
    assert made.journal_url == "gs://bucket/folder/"
    assert made.slack_credentials == SlackCredentials("gs://bucket/slack", "folder/key")


def test_everything_wrong_is_said_at_once():
    found = findings(
        {
            "AsyncTaskURL": "s3://b/x",
            "ErrorURL": 7,
            "MaxConcurrentSQL": -1,
            "MaxConcurrentJobs": "twenty",
            "TimeToLiveInMin": -1,
            "CheckInMs": True,
            "ProjectID": "${project}",
            "TriggerBucket": "gs://b",
            "BatchPrefix": "//",
            "SlackCredentials": "token",
        },
        {"region": "x"},
    )
    assert found == [
        "ProjectID asks for the variable ${project}, which is not given; expected one of the given ones: region",
        "AsyncTaskURL is 's3://b/x'; expected gs://bucket/folder, the bucket's name of 3 characters at least",
        "JournalURL is missing; expected gs://bucket/folder, the bucket's name of 3 characters at least",
        "ErrorURL is 7; expected gs://bucket/folder, the bucket's name of 3 characters at least",
        "TriggerBucket is 'gs://b'; expected the name of a bucket, without gs:// and without a path",
        "TimeToLiveInMin is -1; expected a number of minutes, 0 to 1,440; 0 means the default, 1",
        "CheckInMs is True; expected a whole number, 0 to 10,000,000,000",
        "MaxConcurrentSQL is -1; expected a whole number, 0 to 10,000,000,000",
        "MaxConcurrentJobs is 'twenty'; expected a whole number, 0 to 10,000,000,000",
        "BatchPrefix is '//'; expected a folder with slashes around it, such as /_batch_/",
        'SlackCredentials is a str; expected an object {"URL": gs:// URL of the encrypted token, "Key": "ring/key"}',
    ]


@pytest.mark.parametrize("key", ["JournalURL", "ErrorURL"])
@pytest.mark.parametrize("place", ["gs://ops/BqDispatch/Tasks", "gs://ops/BqDispatch/Tasks/deeper/"])
def test_no_place_of_ours_lies_inside_the_task_folder(key, place):
    (finding,) = findings({**PLACES, key: place})
    assert finding.startswith(f"{key} '{place.rstrip('/')}/' lies inside the task folder")


@pytest.mark.parametrize("key", ["AsyncTaskURL", "JournalURL", "ErrorURL"])
@pytest.mark.parametrize("place", ["gs://one/a/b", "gs://one/a/b/", "gs://one", "gs://one/"])
def test_the_url_of_a_folder_ends_with_a_slash_however_it_was_written(key, place):
    """Names are put behind it: on the page an event would otherwise lie beside its folder."""
    made = config(**{key: place})
    urls = {"AsyncTaskURL": made.async_task_url, "JournalURL": made.journal_url, "ErrorURL": made.error_url}
    assert urls[key] == f"{place.rstrip('/')}/"


def test_a_place_beside_the_task_folder_is_fine():
    assert config(JournalURL="gs://ops/BqDispatch/TasksJournal").journal_url


def test_the_task_folder_may_not_lie_in_the_trigger_bucket():
    (finding,) = findings({**PLACES, "AsyncTaskURL": "gs://mine/tasks", "TriggerBucket": "mine"})
    assert "lies in the TriggerBucket" in finding
    with pytest.raises(ConfigError, match="lies in the TriggerBucket"):
        config(AsyncTaskURL="gs://p_bqtail/tasks").for_project("p")


@pytest.mark.parametrize("prefixes", [("/x/", "/x/"), ("/x/", "/x/y/")])
def test_prefixes_may_not_overlap(prefixes):
    (finding,) = findings({**PLACES, "PostJobPrefix": prefixes[0], "BatchPrefix": prefixes[1]})
    assert "overlap" in finding


@pytest.mark.parametrize("key", ["JournalURL", "ErrorURL"])
def test_nothing_of_ours_lies_in_the_trigger_bucket(key):
    (finding,) = findings({**PLACES, "TriggerBucket": "mine", key: "gs://mine/x"})
    assert finding.startswith(f"{key} 'gs://mine/x/' lies in the TriggerBucket")


def test_places_are_checked_beside_everything_else():
    found = findings({**PLACES, "TimeToLiveInMin": -1, "JournalURL": PLACES["AsyncTaskURL"]})
    assert [finding.split()[0] for finding in found] == ["TimeToLiveInMin", "JournalURL"]


def test_no_minutes_mean_one_as_in_go():
    assert config(TimeToLiveInMin=0).time_to_live_in_min == 1


def test_numbers_may_be_text_for_the_uri_of_a_connection_carries_nothing_else():
    made = config(MaxConcurrentSQL="20", MaxConcurrentLoad="3", TimeToLiveInMin="0.5", CheckInMs="0")
    assert (made.max_concurrent_sql, made.max_concurrent_jobs, made.time_to_live_in_min) == (20, 3, 0.5)
    for odd in ("", " 1", "1e3", "-1", "0x10", "1_000", "٣", "1.5"):
        assert findings({**PLACES, "MaxConcurrentSQL": odd})[0].startswith("MaxConcurrentSQL is ")


def test_capital_letters_in_the_name_of_a_bucket_are_named_as_what_is_wrong():
    (finding,) = findings({**PLACES, "JournalURL": "gs://myBucket/journal"})
    assert finding.endswith("without capital letters")


def test_the_folder_of_bqtails_first_version_is_told_apart():
    document = {key: url for key, url in PLACES.items() if key != "AsyncTaskURL"}
    (finding,) = findings({**document, "DeferTaskURL": "gs://ops/tasks"})
    assert "DeferTaskURL is its name in BqTail's first version" in finding


def test_keys_are_taken_in_any_case_as_go_takes_them():
    assert config(maxconcurrentJOBS=2, projectid="p").max_concurrent_jobs == 2


def test_a_misspelt_key_is_a_warning(caplog):
    config(MaxConcurentSQL=2)
    (record,) = caplog.records
    assert (record.levelname, "MaxConcurentSQL (not MaxConcurrentSQL)" in record.getMessage()) == ("WARNING", True)


@pytest.mark.parametrize(
    "more",
    [
        {"AsyncTaskURL": "gs://ops/\ud800"},
        {"JournalURL": "gs://ops//x"},
        {"ProjectID": "a b/c?"},
        {"ProjectID": "--log-http"},
        {"MaxTriggerDelayMs": 10**20},
        {"MaxUnknownJobMin": -1},
        {"MaxUnknownJobMin": 1.5},
        {"CheckInMs": 10**400},
    ],
)
def test_what_would_fail_later_is_refused_at_once(more):
    assert len(findings({**PLACES, **more})) == 1


def test_the_value_of_a_variable_is_not_shown():
    (finding,) = findings({**PLACES, "TriggerBucket": "${v}"}, {"v": "A SECRET"})
    assert "SECRET" not in finding


def test_prefixes_get_their_slashes():
    assert config(BatchPrefix="batch").batch_prefix == "/batch/"


def test_keys_that_only_bqtail_knows_are_one_log_line(caplog):
    with caplog.at_level(logging.INFO):
        config(RulesURL="gs://x", CorruptedFileURL="gs://y")
    assert [record.getMessage() for record in caplog.records] == [
        "Ignored keys of the configuration that a dispatcher does not use: CorruptedFileURL, RulesURL"
    ]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "\x00", "[" * 100_000])
def test_what_is_no_json_object_is_refused(text):
    with pytest.raises(ConfigError, match=r"expected a JSON object"):
        DispatchConfig.from_json(text)


def test_a_document_is_read_from_a_file(tmp_path):
    path = tmp_path / "a config.json"
    path.write_text(json.dumps({**PLACES, "ProjectID": "${p}"}))
    made = DispatchConfig.from_url(path.as_uri(), {"p": "q"})
    assert made.project_id == "q"
    path.write_text(json.dumps({**PLACES, "ProjectID": "${p}", "MaxConcurrentSQL": 3}))
    assert made.reload().max_concurrent_sql == 3


@pytest.mark.parametrize("url", ["http://x/y", "config.json", "s3://a/b", "gs://", "gs://b\n/x"])
def test_a_document_lies_at_gs_or_file(url):
    with pytest.raises(ConfigError, match=r"expected gs://bucket/object or file:///path"):
        DispatchConfig.from_url(url)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.json"):
        DispatchConfig.from_url((tmp_path / "nothing.json").as_uri())


def test_a_document_that_could_not_be_read_is_read_the_next_time(tmp_path):
    path = tmp_path / "config.json"
    for broken in (None, "{"):
        if broken:
            path.write_text(broken)
        with pytest.raises(ConfigError):
            DispatchConfig.from_url(path.as_uri())
    path.write_text(json.dumps({**PLACES, "MaxConcurrentSQL": 3}))
    assert DispatchConfig.from_url(path.as_uri()).max_concurrent_sql == 3


def refused(url, **more):
    with pytest.raises(ConfigError) as caught:
        DispatchConfig.from_url(url, **more)
    return str(caught.value)


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/dev/stdin"])
def test_a_device_is_not_read(device):
    assert "it is no regular file" in refused(f"file://{device}")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    (tmp_path / "link.json").symlink_to("config.json")
    for name in ("config.json", "link.json"):
        assert "it is no regular file" in refused((tmp_path / name).as_uri())


def test_a_folder_is_not_read(tmp_path):
    assert "it is no regular file" in refused(tmp_path.as_uri())


def test_a_document_has_a_mebibyte_at_most(tmp_path):
    path = tmp_path / "config.json"
    document = json.dumps(PLACES)
    path.write_text(document.ljust(MAX_DOCUMENT_BYTES))
    assert DispatchConfig.from_url(path.as_uri()).async_task_url == PLACES["AsyncTaskURL"]
    path.write_text(document.ljust(MAX_DOCUMENT_BYTES + 1))
    assert "it is larger than 1,048,576 bytes" in refused(path.as_uri())


@pytest.fixture
def roots(tmp_path):
    """Two folders of documents, and a document beside them."""
    for folder in ("a", "b/c", "ab"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").write_text(json.dumps(PLACES))
    return [str(tmp_path / "a"), str(tmp_path / "b")]


@pytest.mark.parametrize("path", ["a/config.json", "b/c/config.json", "ab/../a/config.json"])
def test_a_file_in_a_folder_that_is_named_is_read(tmp_path, roots, path):
    made = DispatchConfig.from_url(f"file://{tmp_path}/{path}", file_roots=roots)
    assert made.reload().journal_url == f"{PLACES['JournalURL']}/"


@pytest.mark.parametrize(
    "path", ["ab/config.json", "a/../ab/config.json", "a/%2e%2e/ab/config.json", "nothing", "a/.."]
)
def test_a_file_elsewhere_is_refused_whether_it_is_there_or_not(tmp_path, roots, path):
    said = refused(f"file://{tmp_path}/{path}", file_roots=roots)
    assert "leads outside of the folders in BQDISPATCH_FILE_ROOTS" in said


def test_a_symbolic_link_counts_as_where_it_leads(tmp_path, roots):
    (tmp_path / "a/out.json").symlink_to(tmp_path / "ab/config.json")
    (tmp_path / "a/folder").symlink_to(tmp_path / "ab")
    (tmp_path / "in.json").symlink_to(tmp_path / "a/config.json")
    for path in ("a/out.json", "a/folder/config.json"):
        said = refused(f"file://{tmp_path}/{path}", file_roots=roots)
        assert "leads outside" in said
        assert f"{tmp_path}/ab" not in said
    assert DispatchConfig.from_url(f"file://{tmp_path}/in.json", file_roots=roots)
    (tmp_path / "root").symlink_to(tmp_path / "ab")
    assert DispatchConfig.from_url(f"file://{tmp_path}/ab/config.json", file_roots=[str(tmp_path / "root")])


@pytest.mark.parametrize("none", [[], ["a", ".", ""]])
def test_without_a_folder_no_file_is_read_and_the_message_says_what_to_set(tmp_path, roots, monkeypatch, none):
    monkeypatch.chdir(tmp_path)
    said = refused(f"file://{tmp_path}/a/config.json", file_roots=none)
    assert "Airflow reads no files: name the folders of configuration documents" in said
    assert "BQDISPATCH_FILE_ROOTS" in said


def test_a_document_that_has_moved_out_of_its_folder_is_not_read_again(tmp_path, roots):
    made = DispatchConfig.from_url(f"file://{tmp_path}/a/config.json", file_roots=roots)
    (tmp_path / "a/config.json").unlink()
    (tmp_path / "a/config.json").symlink_to(tmp_path / "ab/config.json")
    with pytest.raises(ConfigError, match="leads outside"):
        made.reload()


HUSH = "hush-5up3r-s3cr3t"


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(HUSH),
        HUSH,
        f'"{HUSH}',
        f'{{"AsyncTaskURL": {HUSH}}}',
        f'["{HUSH}"]',
        json.dumps({HUSH: HUSH}),
        json.dumps({HUSH: {HUSH: 1}, "AsyncTaskURL": 1}),
        HUSH.encode() + b"\xff",
        f"\ufeff{HUSH}".encode("utf-16"),
        f"1{'0' * 5000}{HUSH}",
    ],
)
def test_of_a_file_that_is_no_document_nothing_is_shown(tmp_path, caplog, content):
    caplog.set_level(logging.DEBUG)
    path = tmp_path / "x"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        DispatchConfig.from_url(path.as_uri())
    error, told = caught.value, [caplog.text]
    while error is not None:
        told += [str(error), repr(vars(error))]
        error = error.__cause__ or error.__context__
    assert HUSH[:6] not in "".join(told)


def test_a_bare_number_is_not_shown_either():
    with pytest.raises(ConfigError, match=r"the document is a number; expected"):
        DispatchConfig.from_json("8675309")


@pytest.mark.parametrize("key", [*PLACES, "ProjectID", "TriggerBucket", "OnDoubt", "BatchPrefix", "MaxConcurrentSQL"])
def test_values_and_names_are_cut_short(key):
    long = f"gs://Ops/{'x' * 100_000}\n"
    for value in (long, f"${{{long}}}"):
        assert max(map(len, findings({**PLACES, key: value}))) < 500


def test_places_that_overlap_are_cut_short():
    long = f"gs://ops/{'x' * 1000}"
    said = findings({"AsyncTaskURL": f"{long}/t", "JournalURL": f"{long}/t/j", "ErrorURL": long})
    assert len(said) == 2
    assert max(map(len, said)) < 400


def test_ignored_keys_are_few_and_short_in_the_log(caplog):
    caplog.set_level(logging.INFO)
    config(**{f"{number:05}{'x' * 1000}": 1 for number in range(1000)})
    (message,) = (record.getMessage() for record in caplog.records)
    assert message.endswith(" and 960 more")
    assert len(message) < 5000


def test_openings_of_variables_that_never_close_are_read_in_linear_time():
    """It ends at all: looking for each one's end takes the square of their number."""
    text = "${" * 400_000
    assert len(findings({**PLACES, "ProjectID": text})) == 1
    assert len(findings({**PLACES, "ProjectID": "${a}" * 200_000 + text})) == 1


def test_variables_are_not_shown():
    assert "secret" not in repr(DispatchConfig.from_dict(PLACES, {"token": "secret"}))


KEYS = st.sampled_from(
    ["ProjectID", "Region", "AsyncTaskURL", "JournalURL", "ErrorURL", "TriggerBucket", "TimeToLiveInMin", "CheckInMs"]
)
LIMITS = st.sampled_from(
    ["MaxConcurrentSQL", "MaxConcurrentJobs", "MaxConcurrentLoad", "MaxTriggerDelayMs", "MaxUnknownJobMin"]
)
OTHERS = st.sampled_from(["PostJobPrefix", "BatchPrefix", "SlackCredentials"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["gs://abc/d", "${v}"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(JSON | st.dictionaries(KEYS | LIMITS | OTHERS | st.text(), JSON))
def test_any_json_gives_a_configuration_or_a_message(document):
    try:
        assert DispatchConfig.from_dict(document, {"v": "x"}).async_task_url.startswith("gs://")
    except ConfigError as error:
        assert error.findings
