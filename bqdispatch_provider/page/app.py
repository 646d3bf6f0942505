"""Routes of the page. Each needs Airflow's login, those of files too."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.responses import JSONResponse, Response

from bqdispatch_provider.page.access import LOGGED_IN, User, dags_with_readable_runs, readable_dags
from bqdispatch_provider.page.series import Range, Selection
from bqdispatch_provider.page.state import NotReadYet, State

STATIC = Path(__file__).parent / "static"
_KINDS = {".css": "text/css", ".js": "text/javascript"}
_FILES = {path.name: _KINDS[path.suffix] for path in STATIC.iterdir() if path.suffix in _KINDS}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
_HEADERS = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin"}

# Whoever is not logged in learns nothing, so there is no list of routes either.
app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, dependencies=[LOGGED_IN])
app.state.bqdispatch = State()


@app.exception_handler(NotReadYet)
def not_read_yet(request: Request, error: Exception) -> Response:
    """Return the answer to somebody who may be allowed to see a set-up once its journal has been read.

    :param request: what was asked.
    :param error: says so.
    """
    said = "A journal is being read for the first time. The page tries again in a moment."
    return JSONResponse({"detail": said}, 503, {"Retry-After": "2"})


@app.get("/")
def index() -> Response:
    """Return the page. It names its files by their content, so a browser may keep them for good."""
    text = (STATIC / "index.html").read_text().replace("static/", f"static/{_content()}/")
    return Response(text, media_type="text/html", headers={**_HEADERS, "Cache-Control": "no-cache"})


@app.get("/static/{content}/{name}")
def file(content: str, name: str) -> Response:
    """Return a file.

    :param content: the hash of the content of all files, which name one another.
    :param name: its name.
    """
    if name not in _FILES or content != _content():
        raise HTTPException(404, "There is no such file.")
    kept = {"Cache-Control": "private, max-age=31536000, immutable"}
    return Response((STATIC / name).read_bytes(), media_type=_FILES[name], headers={**_HEADERS, **kept})


@app.get("/api/setups")
def setups(user: User) -> dict[str, Any]:
    """List the set-ups that a user may see, each with the DAGs that the user may read.

    :param user: who asks.
    """
    readable = readable_dags(user)
    seen = _state().setups(readable)
    return {"setups": [{**setup.brief(), "dags": sorted(setup.dags() & readable)} for setup in seen]}


@app.get("/api/state")
def state(
    user: User, setup: str, span: Annotated[Range, Query(alias="range")] = Range.HOUR, project: str = ""
) -> dict[str, Any]:
    """Return how things stand in a set-up.

    :param user: who asks.
    :param setup: ID of the set-up's connection.
    :param span: the range of time.
    :param project: the project; by default all.
    """
    readable = readable_dags(user)
    seen = _state().setups(readable, setup) if setup else []
    if not seen:
        raise HTTPException(404, "There is no such set-up, or you may read none of its DAGs.")
    dags = seen[0].dags() & readable
    runs = _state().runs(dags_with_readable_runs(user, dags))
    return {**seen[0].made(Selection(span, project)), "dags": sorted(dags), "runs": runs}


def _state() -> State:
    known: State = app.state.bqdispatch
    return known


@cache
def _content() -> str:
    texts = b"".join((STATIC / name).read_bytes() for name in sorted(_FILES))
    return hashlib.sha256(texts).hexdigest()[:16]
