"""An answer to a batch is read in linear time, whatever its headers hold, and no further than there are calls."""

import json

import pytest
import requests
from called import calls_of, patterns_in
from google.api_core.exceptions import RetryError
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import RefreshError
from google.cloud.storage import Client

from bqdispatch_provider.gcp import gcs_batch, storage_calls
from bqdispatch_provider.gcp.errors import error_from_response, is_retryable
from bqdispatch_provider.gcp.gcs_batch import ApiCall, BatchNotSupported
from bqdispatch_provider.gcp.storage_answers import Result, unexpected_form
from bqdispatch_provider.gcp.storage_calls import StorageCalls
from bqdispatch_provider.names import MAX_MESSAGE_CHARS, in_words

TYPE = "multipart/mixed; boundary=batch_x"
GOOD = b"Content-Type: application/http\nContent-ID: <response-0>\n\nHTTP/1.1 200 OK\nContent-Type: x\n\n{}"


def answer(*parts):
    return b"".join(b"--batch_x\r\n%s\r\n" % each for each in parts) + b"--batch_x--\r\n"


def part(head=b"Content-ID: <response-0>", status=b"HTTP/1.1 200 OK", body=b"{}"):
    return b"%s\n\n%s\nContent-Type: x\n\n%s" % (head, status, body)


def read(content, content_type=TYPE, number=1):
    """The functions that reading an answer calls, in Python and in C, and what came of it."""
    return calls_of(gcs_batch._answers, content_type, content, number, fails=BatchNotSupported)


HOSTILE = {
    "digits in the Content-ID": lambda n: (answer(part(b"Content-ID: <" + b"1" * n + b"x")), TYPE),
    "a Content-ID of digits": lambda n: (answer(part(b"Content-ID: <" + b"1" * n + b">")), TYPE),
    "spaces in the Content-ID": lambda n: (answer(part(b"Content-ID: 1" + b" " * n + b"x")), TYPE),
    "digits and spaces": lambda n: (answer(part(b"Content-ID:" + b"1 " * n + b"x")), TYPE),
    "brackets": lambda n: (answer(part(b"Content-ID:" + b"1>" * n + b"x")), TYPE),
    "a long line before the Content-ID": lambda n: (answer(part(b"x" * n + b"\nContent-ID: <response-0>")), TYPE),
    "a status line without end": lambda n: (answer(part(status=b"HTTP/" + b"1" * n)), TYPE),
    "spaces before the status line": lambda n: (answer(part(status=b" " * n + b"HTTP/1.1")), TYPE),
    "a boundary that never comes": lambda n: (answer(part()), "multipart/mixed " * n),
    "a long boundary": lambda n: (answer(part()), "multipart/mixed; boundary=" + "x" * n),
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
def test_an_answer_with_hostile_headers_is_read_in_linear_time(make):
    """Each call of a method of ``bytes`` is linear; so it is enough that their number does not depend on the length.

    A pattern is one call that may take any time, so none is used.
    """
    numbers = set()
    for length in (100, 3000):
        called, come = read(*make(length))
        assert set(patterns_in(called)) <= {json.decoder.WHITESPACE}  # of the body
        assert len(str(come)) < 400
        numbers.add(len(called))
    assert len(numbers) == 1


@pytest.mark.parametrize("number", [b"1" * 5000, b"1", b"0000", b"-1", b"response-0-99"])
def test_a_content_id_that_names_no_call_makes_the_batch_one_that_nobody_knows_of(number):
    (_, come) = read(answer(part(b"Content-ID: <" + number + b">")))
    assert isinstance(come, BatchNotSupported)


@pytest.mark.parametrize("named", [b"", b"<>", b"<response-\xd9\xa1>"])
def test_a_content_id_without_a_digit_at_its_end_is_none(named):
    (_, come) = read(answer(part(b"Content-ID: " + named)))
    assert come == [(200, {})]


def test_of_more_answers_than_calls_no_more_are_read(monkeypatch):
    read = []
    monkeypatch.setattr(gcs_batch, "_json", lambda body: read.append(body) or {})
    for parts in (10, 1000):
        read.clear()
        with pytest.raises(BatchNotSupported):
            gcs_batch._answers(TYPE, answer(*(part(b"X: y") for _ in range(parts))), 3)
        assert len(read) == 3


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"a":' * 100_000, b'{"generation": ' + b"9" * 5000 + b"}"])
def test_an_answer_that_json_cannot_hold_is_that_of_its_call_alone(body):
    bad, good = gcs_batch._answers(TYPE, answer(part(b"Content-ID: <0>", body=body), part(b"Content-ID: <1>")), 2)
    assert good == (200, {})
    assert list(bad[1]) == ["error"]
    assert len(bad[1]["error"]["message"]) <= 200


@pytest.mark.parametrize(
    "head",
    [
        b"content-id: <response-0>",
        b"CONTENT-ID:<response-0> ",
        b"X: 1\r\nContent-ID:  <response-x+0>\r",
        b"Content-ID: 0",
    ],
)
def test_a_content_id_is_read_in_any_spelling(head):
    assert gcs_batch._answers('Multipart/Mixed; charset=x; Boundary="batch_x"', answer(part(head)), 1) == [(200, {})]


def refusal(content, status=403):
    response = requests.Response()
    response.status_code, response._content = status, content
    response.request = requests.Request("GET", "http://127.0.0.1/").prepare()
    return response


LIMITED = b'{"error": {"errors": [{"reason": "rateLimitExceeded"}], "message": "%s"}}'


@pytest.mark.parametrize(
    "content", [LIMITED % (b"x" * 1_000_000), b"\xe4\xf6" * 500_000, b"[" * 60_000], ids=["JSON", "no text", "deep"]
)
def test_a_huge_or_deep_refusal_is_an_error_with_its_beginning(content, monkeypatch):
    """The library would read it whole, and guess how it is encoded."""
    guessed = []
    monkeypatch.setattr(requests.models.chardet, "detect", lambda text: guessed.append(text) or {"encoding": "ascii"})
    error = error_from_response(refusal(content))
    assert (error.code, guessed) == (403, [])
    assert len(str(error)) < 400
    assert not is_retryable(error)


def test_a_small_refusal_is_read():
    assert error_from_response(refusal(LIMITED % b"slow down")).code == 429


PAGE = b"<p>\n" * 15_000
"""Of a proxy, and less than what is not read at all."""


@pytest.mark.parametrize(
    "error",
    [error_from_response(refusal(PAGE, 503)), RefreshError(PAGE.decode()), RetryError("late", RefreshError(PAGE))],
    ids=lambda error: type(error).__name__,
)
def test_what_is_said_of_an_error_is_bounded(error):
    assert len(in_words(error)) <= MAX_MESSAGE_CHARS + 1
    assert len(str(Result.of_error(error))) <= MAX_MESSAGE_CHARS * 2
    assert "<p>" in in_words(error)


@pytest.mark.parametrize("errors", [b"null", b"7", b'["no"]', b'[{"reason": "notFound"}, 7]'])
@pytest.mark.parametrize("status", [403, 404, 503])
def test_a_refusal_whose_reasons_have_another_form_has_none(errors, status):
    content = b'{"error": {"message": "no", "errors": %s}}' % errors
    error = error_from_response(refusal(content, status))
    assert (error.code, error.errors) == (status, [])
    assert "no" in error.message


@pytest.mark.parametrize(
    "error",
    [
        {"message": "x" * 1_000_000},
        {"message": ["x"] * 1_000_000},
        ["x"] * 1_000_000,
        {"errors": 7, "message": 8},
        {"errors": {"reason": "x"}},
        {"errors": [{"reason": [["x"]]}, 7, None]},
    ],
)
def test_a_refusal_in_a_batch_says_a_bounded_message(error):
    result = Result.of_answer(ApiCall("GET", "/b/x/o/y", {}), 403, {"error": error})
    assert (result.status, len(result.message) <= 4000) == (403, True)


DATE = "Thu, 01 Jan 2026 00:00:00 GMT"


@pytest.mark.parametrize(
    "date",
    [
        f"Thu, 01 Jan {'9' * 30} 00:00:00 GMT",
        f"Thu, 01 Jan {'9' * 5000} 00:00:00 GMT",
        "Thu, 01 Jan 2026 00:00:00 +9999999999999",
        "Thu, 01 Jan 2026 99:00:00 GMT",
        "Thu, 99999999999999999999999 Jan 2026 00:00:00 GMT",
        "",
        ",",
        ":" * 60_000,
        "1 " * 30_000,
    ],
)
def test_a_date_of_no_calendar_is_none(date, monkeypatch):
    given = []
    parse = storage_calls.parsedate_to_datetime
    monkeypatch.setattr(storage_calls, "parsedate_to_datetime", lambda text: given.append(text) or parse(text))
    response = requests.Response()
    calls = StorageCalls(Client(project="p", credentials=AnonymousCredentials()), "b")
    for each in (DATE, date):
        response.headers["Date"] = each
        calls._record_date(response)
    assert calls.now().year == 2026
    assert max(map(len, given)) <= 64


@pytest.mark.parametrize(
    "item",
    [
        {"name": 7},
        {"name": "x", "generation": "9" * 5000},
        {"name": "x", "generation": 10**19},
        {"name": "x", "generation": "1.5"},
        {"name": "x", "generation": True},
        {"name": "x", "generation": "1", "timeCreated": 7},
        {"name": "x", "timeCreated": "2026-01-01T00:00:00Z"},
        "x",
        None,
    ],
    ids=lambda item: str(item)[:60],
)
def test_a_list_with_an_odd_object_has_an_unexpected_form(item):
    call = ApiCall("GET", "/b/x/o", {"fields": "items(name,generation,timeCreated),nextPageToken"})
    good = {"name": "x", "generation": "17", "timeCreated": "2026-01-01T00:00:00Z"}
    assert unexpected_form(call, {"items": [good]}) == ""
    assert "unexpected form" in unexpected_form(call, {"items": [good, item]})
