"""The calls that a real dispatcher makes, by the names that they have in the models.

A :class:`Recorder` stands in front of ``requests``; each call is written down before it is sent, and again with its
answer, so that the file tells what a process did that was killed.
"""

import json
import re
import threading
from collections import defaultdict
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

_BOUNDARY = re.compile(r"boundary=\"?([^\";]+)")
_REQUEST = re.compile(r"^(GET|POST|DELETE|PUT|PATCH) (\S+)", re.MULTILINE)
_STATUS = re.compile(r"HTTP/\S+ (\d{3})")
_PART_ID = re.compile(r"content-id:.*?(\d+)>?\s*$", re.IGNORECASE | re.MULTILINE)
_LEDGER = re.compile(r"^~ledger/[^/]*/(?P<window>.+\.win)\.(?P<generation>\d+)\.(?P<kind>claim|fired|aside|gone-\d+)$")
_UNDECIDED = re.compile(r"^undecided/(?P<window>.+\.win)\.(?P<generation>\d+)$")
_INTENT = re.compile(r"^intents/[^/]+\.json(?P<done>\.done)?$")


class Call(NamedTuple):
    """One call as the models name it.

    :param what: such as ``claim`` or ``copy``.
    :param name: the object that it is about, below the task folder; an intent's for those.
    :param generation: of the window that it is about; ``""`` where it names none.
    :param about: the names and generations that an intent holds.
    """

    what: str
    name: str
    generation: str = ""
    about: tuple = ()


class Recorder:
    """Writes calls down.

    :param path: the file.
    :param tasks: bucket of the task folder.
    :param folder: the task folder in it, with a slash at its end.
    :param trigger: the trigger bucket.
    """

    def __init__(self, path, tasks, folder, trigger):
        self._file = path.open("a", buffering=1, encoding="utf-8")
        self._tasks, self._folder, self._trigger = tasks, folder, trigger
        self._number = 0
        self._lock = threading.Lock()

    def sent(self, request):
        """Write down what is sent, before it is; returns what :meth:`answered` takes."""
        calls = [self._call(*each) for each in _calls_in(request)]
        if not any(calls):
            return None
        with self._lock:
            self._number += 1
            number = self._number
            self._write({"sent": number, "calls": calls})
        return number

    def answered(self, number, response):
        """Write down what was answered."""
        if number is not None:
            statuses = _statuses_in(response)
            with self._lock:
                self._write({"answered": number, "statuses": statuses})

    def passing(self, send):
        """Return a function that sends as the given one does, and has it written down."""

        def recorded(session, request, **more):
            number = self.sent(request)
            response = send(session, request, **more)
            self.answered(number, response)
            return response

        return recorded

    def close(self):
        """Write nothing more."""
        self._file.close()

    def _write(self, line):
        self._file.write(json.dumps(line) + "\n")

    def _call(self, method, url, body):
        """A call by its name in the models; ``None`` for one that they have not."""
        parts = urlsplit(url)
        query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        path = parts.path
        if method == "POST" and "/upload/" in path:
            name = query.get("name") or json.loads(body.get("head") or "{}").get("name", "")
            return self._written(unquote(_bucket(path)), name, body.get("text", ""), query)
        found = re.search(r"/b/([^/]+)/o(?:/([^/]+))?(?:/(compose|copyTo|rewriteTo)(?:/b/([^/]+)/o/([^/]+))?)?$", path)
        if found is None:
            return None
        bucket, name, verb, to, target = (unquote(each) if each else "" for each in found.groups())
        name = name.removeprefix(self._folder)
        if verb in ("copyTo", "rewriteTo"):
            return self._copied(name, query, to, target)
        if verb == "compose":
            return self._composed(name, query)
        if method == "DELETE" and bucket == self._tasks:
            return self._deleted(name, query)
        if method == "GET" and bucket == self._trigger and not name and query.get("versions"):
            return Call("list versions", query.get("prefix", ""))
        return None

    def _written(self, bucket, name, text, query):
        if bucket != self._tasks:
            return None
        name = name.removeprefix(self._folder)
        if found := _INTENT.match(name):
            if found["done"]:
                return Call("end intent", name.removesuffix(".done"))
            return _intent(name, text, renewed=query.get("ifGenerationMatch", "0") != "0")
        return None

    def _composed(self, name, query):
        if found := _UNDECIDED.match(name):
            return Call("write undecided", found["window"], found["generation"])
        found = _LEDGER.match(name)
        if found is None:
            return None if name.endswith((".win", ".wis")) else Call("fence", name)
        kind = found["kind"].partition("-")[0]
        if kind == "claim" and query.get("ifGenerationMatch") != "0":
            kind = "fence"
        what = kind if kind in ("claim", "fence") else f"write {kind}"
        return Call(what, found["window"], found["generation"])

    def _copied(self, name, query, to, target):
        if found := _LEDGER.match(name):
            return Call("copy" if to == self._trigger else "set aside", found["window"], found["generation"])
        return Call("copy" if to == self._trigger else "set aside", name, query.get("ifSourceGenerationMatch", ""))

    def _deleted(self, name, query):
        generation = query.get("ifGenerationMatch", "")
        if not generation:
            return None  # of nothing, to see whether a delete works
        if found := _INTENT.match(name):
            return None if found["done"] else Call("end intent", name)
        if found := _LEDGER.match(name):
            return Call(f"delete {found['kind']}", found["window"], found["generation"])
        if name.endswith(".win") and "/" not in name:
            return Call("delete window", name, generation)
        if name.endswith(".loc"):
            return Call("delete location", name, generation)
        return Call("delete", name, generation)


def _intent(name, text, *, renewed):
    document = json.loads(text)
    moves = [(move[0], str(move[1])) for move in document.get("moves", ())]
    firings = [(each["window"], str(each["generation"])) for each in document.get("firings", ())]
    what = "renew intent" if renewed else "write left" if name.endswith("-left-windows.json") else "write intent"
    return Call(what, name, "", tuple(moves + firings))


def _bucket(path):
    return re.search(r"/b/([^/]+)/o", path)[1]


def _calls_in(request):
    """The calls in a request: the parts of a batch, or the request itself."""
    body = request.body or b""
    if hasattr(body, "read"):
        return []
    text = _text(body)
    kind = _text(request.headers.get("content-type", ""))
    if "/batch/storage/" in request.url:
        boundary = _BOUNDARY.search(kind)[1]
        for piece in text.split(f"--{boundary}")[1:]:
            if found := _REQUEST.search(piece):
                yield found[1], found[2], {}
    elif "/upload/" in request.url and "multipart" in kind:
        boundary = _BOUNDARY.search(kind)[1].strip("'")
        pieces = [piece.split("\r\n\r\n", 1)[-1].rstrip("\r\n") for piece in text.split(f"--{boundary}")[1:-1]]
        yield request.method, request.url, {"head": pieces[0], "text": pieces[1]}
    else:
        yield request.method, request.url, {}


def _text(content):
    return content.decode("utf-8", "replace") if isinstance(content, bytes) else content


def _statuses_in(response):
    if "/batch/storage/" not in response.request.url or response.status_code != 200:
        return [response.status_code]
    boundary = _BOUNDARY.search(response.headers["content-type"])[1]
    statuses = {}
    for position, piece in enumerate(response.text.split(f"--{boundary}")[1:]):
        if found := _STATUS.search(piece):
            named = _PART_ID.search(piece)
            statuses[int(named[1]) if named else position] = int(found[1])
    return [statuses.get(each, 0) for each in range(len(statuses))]


def read(path):
    """Return what one process did: each call, and what came of it, ``lost`` where no answer came.

    What the service has refused since it came too fast, or was never authorised, was not carried out, and is left out.
    """
    sent, answers = {}, {}
    for line in path.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if "sent" in entry:
            sent[entry["sent"]] = [
                Call(*call[:3], tuple(map(tuple, call[3]))) if call else None for call in entry["calls"]
            ]
        else:
            answers[entry["answered"]] = entry["statuses"]
    for number, calls in sent.items():
        statuses = answers.get(number) or []
        if len(statuses) != len(calls):
            statuses = [0] * len(calls)
        for call, status in zip(calls, statuses, strict=True):
            if call is None or status in (400, 401, 403, 429):
                continue
            yield call, "ok" if 200 <= status < 300 else "refused" if status in (404, 412) else "lost"


def by_object(calls):
    """Split what a process did by the objects that it did it for: traces by name, windows by name and generation.

    An intent belongs to everything in it; a look at versions to the objects whose names begin so.
    """
    calls = list(calls)
    held = {call.name: call.about for call, _ in calls if call.what in ("write intent", "write left")}
    found = defaultdict(list)
    for call, result in calls:
        if call.what in ("write intent", "write left", "renew intent", "end intent"):
            for name, generation in held.get(call.name, ()):
                found[_key(name, generation)].append((call.what, result))
        elif call.what == "list versions":
            stem = call.name.rpartition("/")[2] if call.name.startswith("_batch_/") else call.name.partition("proj:")[2]
            for key, done in found.items():
                if done[-1][0] in ("fence", "delete window") and stem and stem in key[0]:
                    done.append((call.what, "?"))
        else:
            found[_key(call.name, call.generation)].append((call.what, result))
    return dict(found)


def _key(name, generation):
    return (name, generation) if name.endswith(".win") else (name, "")
