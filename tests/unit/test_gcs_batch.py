"""What an endpoint, or a proxy before it, may answer to a batch and to a single call.

Each answer belongs to its call, and what is no answer leaves nobody to believe that nothing was done.
"""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud.storage import Client

from bqdispatch_provider.gcp.storage import TaskStore

COPIES = [("one", 1, "a"), ("two", 2, "b")]
HTML = ("text/html", "<html><b>Sign in</b></html>")


class Endpoint:
    """Gives one answer, to all that it is asked."""

    def __init__(self):
        self.status, self.type, self.body, self.asked = 200, *HTML, []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(handler):
                handler.rfile.read(int(handler.headers["Content-Length"]))
                self.asked.append(handler.path)
                body = self.body.encode()
                handler.send_response(self.status)
                handler.send_header("Content-Type", self.type)
                handler.send_header("Content-Length", str(len(body)))
                handler.end_headers()
                handler.wfile.write(body)

            def log_message(handler, *_):
                """Standard error is the tests'."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)

    def parts(self, *parts):
        self.type = "multipart/mixed; boundary=batch_x"
        self.body = "".join(f"--batch_x\r\n{each}\r\n" for each in parts) + "--batch_x--\r\n"


def part(number, status=200, body='{"generation": "7"}'):
    named = "" if number is None else f"Content-ID: <response-{number}>\r\n"
    return f"Content-Type: application/http\r\n{named}\r\nHTTP/1.1 {status} OK\r\nContent-Type: x\r\n\r\n{body}"


@pytest.fixture
def endpoint():
    endpoint = Endpoint()
    thread = threading.Thread(target=endpoint.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield endpoint
    endpoint.server.shutdown()
    thread.join()
    endpoint.server.server_close()


@pytest.fixture
def store(endpoint):
    url = f"http://127.0.0.1:{endpoint.server.server_port}"
    client = Client(project="p", credentials=AnonymousCredentials(), client_options={"api_endpoint": url})
    return TaskStore(client, "gs://ops/tasks", "trigger")


def test_answers_in_another_order_belong_to_their_calls(endpoint, store):
    endpoint.parts(part(1, 412, "{}"), part(0))
    assert [(each.status, each.generation) for each in store.copy(COPIES)] == [(200, 7), (412, 0)]


def test_answers_without_a_number_come_in_the_order_of_the_calls(endpoint, store):
    endpoint.parts(part(None), part(None, 404, ""))
    assert [each.status for each in store.copy(COPIES)] == [200, 404]


@pytest.mark.parametrize("numbers", [[0], [0, 0], [0, 2], [0, 1, 2], []])
def test_of_a_batch_with_answers_that_are_missing_or_too_many_nobody_knows_what_was_done(endpoint, store, numbers):
    endpoint.parts(*map(part, numbers))
    assert [each.lost for each in store.copy(COPIES)] == [True, True]
    assert len(endpoint.asked) == 1


@pytest.mark.parametrize("copies", [COPIES, COPIES[:1]], ids=["batch", "single call"])
def test_of_a_page_instead_of_an_answer_nobody_knows_what_was_done(store, copies):
    assert all(each.lost for each in store.copy(copies))


@pytest.mark.parametrize("copies", [COPIES, COPIES[:1]], ids=["batch", "single call"])
def test_of_an_error_with_the_status_of_a_success_nobody_knows_what_was_done(endpoint, store, copies):
    said = '{"error": {"code": 503, "message": "try again"}, "generation": "7"}'
    endpoint.type, endpoint.body = "application/json", said
    if len(copies) > 1:
        endpoint.parts(part(0, body=said), part(1, body=said))
    assert all(each.lost for each in store.copy(copies))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("<html>no</html>", "403 <html>no</html>"),
        ('{"error": "invalid_grant"}', "403 invalid_grant"),
        ('{"error": {"errors": null, "message": null}}', "403"),
        ('["no"]', '403 ["no"]'),
        ("", "403"),
    ],
)
def test_a_refusal_in_a_form_of_its_own_leaves_the_other_answers_what_they_are(endpoint, store, body, said):
    endpoint.parts(part(0, 403, body), part(1))
    refused, copied = store.copy(COPIES)
    assert (str(refused), copied.ok) == (said, True)
