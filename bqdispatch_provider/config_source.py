"""The source of a configuration document: an object, or a file that Airflow may read."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from bqdispatch_provider.config_errors import ConfigError, shown
from bqdispatch_provider.config_keys import GS_URL
from bqdispatch_provider.names import in_words

if TYPE_CHECKING:
    from google.cloud.storage import Client

MAX_DOCUMENT_BYTES = 1 << 20
"""Bytes of a configuration document."""

FILE_ROOTS = "BQDISPATCH_FILE_ROOTS"
"""Environment variable of Airflow's components: the folders whose files a connection may name as its document."""


def fetch(url: str, storage_client: Client | None, roots: tuple[str, ...] | None) -> bytes:
    """Read a configuration document of at most :data:`MAX_DOCUMENT_BYTES`.

    :param url: ``gs://bucket/object`` or ``file:///path``.
    :param storage_client: client for ``gs://``; ``None`` for one with the environment's credentials.
    :param roots: folders whose files may be read; ``None`` for all.
    :raises ConfigError: when the URL is refused, or the document cannot be read.
    """
    try:
        parts = urlsplit(url)
    except ValueError:  # it has a host in brackets, which is none
        parts = urlsplit("")
    if parts.scheme not in ("gs", "file") or (parts.scheme == "gs" and not GS_URL.fullmatch(url)):
        raise ConfigError([f"the document's URL is {shown(url)}; expected gs://bucket/object or file:///path"])
    try:
        if parts.scheme == "file":
            return _read_file(_resolve(Path(unquote(parts.path)), url, roots))
        from bqdispatch_provider.gcp.objects import read_object  # noqa: PLC0415  (costs 0.5 s, and only gs:// needs it)

        return read_object(url, storage_client, max_bytes=MAX_DOCUMENT_BYTES)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError([f"the document at {shown(url)} cannot be read: {in_words(error)}"]) from error


def _resolve(path: Path, url: str, roots: tuple[str, ...] | None) -> Path:
    """Follow a path's symbolic links.

    :param url: the path as the user gave it, for the message.
    :param roots: folders in which the target has to lie; ``None`` for any.
    :raises ConfigError: when the target lies somewhere else, whether there is a file or not.
    """
    target = path.resolve()
    if roots is None:
        return target
    folders = [Path(root) for root in roots if Path(root).is_absolute()]
    if not folders:
        problem = (
            f"but Airflow reads no files: name the folders of configuration documents in the environment variable "
            f"{FILE_ROOTS} of its components (absolute paths, {os.pathsep!r} between them), or put the document into a "
            "bucket (gs://bucket/object)"
        )
    elif not any(target.is_relative_to(folder.resolve()) for folder in folders):
        problem = f"which leads outside of the folders in {FILE_ROOTS}; expected a file in one of them"
    else:
        return target
    raise ConfigError([f"the document's URL is {shown(url)}, {problem}"])


def _read_file(path: Path) -> bytes:
    """Read a regular file.

    :param path: without symbolic links.
    :raises OSError: when it cannot be read.
    :raises ValueError: when it is no regular file, or too large.
    """
    if path.exists() and not path.is_file():
        raise ValueError("it is no regular file")  # and is not opened: a device may do something then
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as opened:
        if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
            raise ValueError("it is no regular file")
        content = opened.read(MAX_DOCUMENT_BYTES + 1)
    if len(content) > MAX_DOCUMENT_BYTES:
        raise ValueError(f"it is larger than {MAX_DOCUMENT_BYTES:,} bytes")
    return content


def read_json(text: str | bytes, what: str) -> Any:
    """Read JSON.

    :param what: name of the text, for the message.
    :raises ConfigError: when it is no JSON. The message says where it is wrong, and shows nothing of it.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        said = str(error)
    except UnicodeDecodeError:
        said = "it is no text"
    except RecursionError:
        said = "it is nested too deeply"
    except ValueError:
        said = "a number has too many digits"
    # Raised here, and not from the error, which holds the text.
    raise ConfigError([f"{what} is no JSON ({said}); expected a JSON object"])
