"""The Python package of a deployment: the wheel that it uploads, and the pip.conf by which it is installed."""

from __future__ import annotations

import base64
import hashlib
import re
import zipfile
import zlib
from configparser import Error, RawConfigParser
from contextlib import suppress
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

PACKAGE = "airflow-provider-bqdispatch"

_FILE = re.compile(r"airflow_provider_bqdispatch-(?P<version>[0-9A-Za-z.+!_]+)(-[0-9]\w*)?(-[\w.]+){3}\.whl", re.ASCII)
_VERSION = re.compile(r'^__version__ = "(.+)"$', re.MULTILINE)
_SHA256 = re.compile(r"sha256=([0-9a-f]{64})")
_METADATA = re.compile(r"[^/]+\.dist-info/METADATA")
_MAX_METADATA_BYTES = 1_000_000
_SOURCES = ("index-url", "pypi-url", "extra-index-url", "find-links", "no-index")
"""Settings of pip that say where packages come from. ``pypi-url`` is another name of the first one."""

_INDEXES = ("index-url", "pypi-url")
_PUBLIC_INDEX = re.compile(r"[^/]*//([^/]*@)?([^/@]+\.)?pypi(\.python)?\.org\.?(:\d+)?(/.*)?", re.IGNORECASE)
_HEADER = re.compile(r"[ \t]*\[global\]")
_SECTION = re.compile(r"[ \t]*\[")
_LONE_CARRIAGE_RETURN = re.compile(r"\r(?!\n)")
_CREDENTIALS = re.compile(r"//([^/@\s]+)@")
_GAP = re.compile(r"[^\S\n]{100}")
"""Spaces within a line for which the parser, as pip's, would take the square of their number."""

MAX_PIP_CONF_BYTES = 64 * 1024
_MAX_HEADERS = 10
"""Lines that look like the header of the section, at which a line is tried to be added. Nearly always there is one."""


@dataclass(frozen=True)
class Wheel:
    """The wheel to deploy.

    :param file: its path, now or once it is built or downloaded.
    :param version: version of the package.
    :param url: where to download it from; empty: nowhere.
    :param sha256: its hash in hex; empty: not given.
    :param to_build: it has to be built first.
    """

    file: Path
    version: str
    url: str = ""
    sha256: str = ""
    to_build: bool = False

    @classmethod
    def parse(cls, given: str) -> Wheel:
        """Read a path or a URL, with ``#sha256=…`` at its end. A URL must have that.

        :param given: as pip takes it.
        :raises ValueError: if it is no wheel of this package, or has another hash.
        """
        place, hash_mark, fragment = given.partition("#")
        credentials = _credentials(given)
        shown = given.replace(credentials, "…", 1) if credentials else given
        found = _SHA256.fullmatch(fragment)
        if hash_mark and not found:
            raise ValueError(f"{shown!r} has no hash after its #; expected #sha256= and 64 hex digits in lower case")
        sha256 = found[1] if found else ""
        if "://" not in place:
            wheel = cls(Path(place), _version_of(Path(place).name), sha256=sha256)
            wheel.verify()
            return wheel
        if urlsplit(place).scheme not in ("http", "https"):
            raise ValueError(f"{shown!r} is no URL of a wheel; expected https://…, or a path")
        if not sha256:
            raise ValueError(f"{shown!r} is given without a hash; expected {shown}#sha256=… (`sha256sum` prints it)")
        name = unquote(urlsplit(place).path.rpartition("/")[2])
        return cls(Path("dist") / name, _version_of(name), given, sha256)

    @classmethod
    def from_checkout(cls) -> Wheel | None:
        """Return the wheel that ``make dist`` builds here; ``None`` if this folder is no checkout of the project."""
        project, module = Path("pyproject.toml"), Path("bqdispatch_provider/__init__.py")
        if not (Path("Makefile").is_file() and project.is_file() and module.is_file()):
            return None
        version = _VERSION.search(module.read_text())
        if version is None or f'name = "{PACKAGE}"' not in project.read_text():
            return None
        name = f"{PACKAGE.replace('-', '_')}-{version[1]}-py3-none-any.whl"
        return cls(Path("dist") / name, version[1], to_build=True)

    @property
    def secrets(self) -> tuple[str, ...]:
        """Texts that no message may show: the credentials in its URL."""
        credentials = _credentials(self.url)
        return (credentials,) if credentials else ()

    @property
    def programs(self) -> list[str]:
        """The programs by which it is built or downloaded, and uploaded."""
        return ["uv", *(["make"] if self.to_build else []), *(["pip"] if self.url else [])]

    def verify(self) -> set[str]:
        """Check that the file is a wheel of this package and version, and has the hash that was given.

        :returns: its SHA-256 in hex and in base64: Artifact Registry may use either.
        :raises ValueError: if it is not.
        """
        try:
            digest = hashlib.sha256(self.file.read_bytes())
        except OSError as error:
            raise ValueError(f"{str(self.file)!r} cannot be read: {error}") from error
        if self.sha256 and digest.hexdigest() != self.sha256:
            raise ValueError(f"{str(self.file)!r} has the SHA-256 {digest.hexdigest()}; expected {self.sha256}")
        name, version = _metadata(self.file)
        if not is_ours(name) or version != self.version:
            raise ValueError(
                f"{str(self.file)!r} is {name!r} {version!r} by its METADATA; expected {PACKAGE} {self.version}"
            )
        return {digest.hexdigest(), base64.b64encode(digest.digest()).decode()}


def _credentials(url: str) -> str:
    """Return the credentials in a URL, which may hold unquoted slashes; empty without any."""
    return url.partition("//")[2].rpartition("@")[0]


def is_ours(name: str) -> bool:
    """Tell whether a name is this package's, in any spelling.

    :param name: of a package.
    """
    return re.sub(r"[-_.]+", "-", name).lower() == PACKAGE


def _version_of(name: str) -> str:
    found = _FILE.fullmatch(name)
    if found is None:
        raise ValueError(f"{name!r} is no wheel of {PACKAGE}; expected airflow_provider_bqdispatch-VERSION-….whl")
    return found["version"]


def _metadata(file: Path) -> tuple[str, str]:
    try:
        with zipfile.ZipFile(file) as archive:
            found = [each for each in archive.infolist() if _METADATA.fullmatch(each.filename)]
            if len(found) != 1 or found[0].file_size > _MAX_METADATA_BYTES:
                raise ValueError("expected one METADATA file in it, of a megabyte at most")
            headers = HeaderParser().parsestr(archive.read(found[0]).decode())
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{str(file)!r} is no wheel: {error}") from error
    return str(headers["Name"]), str(headers["Version"])


class PipConf:
    """The pip.conf of an environment. It may hold passwords, so no message shows any of it.

    :param text: its content.
    :raises ValueError: if pip cannot read it, or reads other lines in it than those that end with a line feed.
    """

    def __init__(self, text: str) -> None:
        # pip ends a line there, and would read settings that are in a comment or a value here.
        if _LONE_CARRIAGE_RETURN.search(text):
            raise ValueError("has a carriage return without a line feed, which ends a line for pip alone")
        if len(text) > MAX_PIP_CONF_BYTES:
            raise ValueError(f"has more than {MAX_PIP_CONF_BYTES:,} bytes")
        if any(_GAP.search(line.strip()) for line in _lines(text)):
            raise ValueError("has a hundred spaces in a row within a line, for which pip takes very long")
        self._text = text
        self._settings = _settings(text)

    @property
    def secrets(self) -> tuple[str, ...]:
        """Texts that no message may show: its lines and values, and the credentials in its URLs."""
        lines = [line.strip() for line in self._text.splitlines()]
        values = [word for value in self._settings.values() for word in value.split()]
        credentials = [each for value in values for each in _CREDENTIALS.findall(value)]
        words = [part for each in credentials for part in (each, *each.split(":"))]
        words += [unquote(word) for word in words]
        return tuple({each for each in (*lines, *values, *words) if len(each) > 2})

    def uses(self, index: str) -> bool:
        """Tell whether it names an index.

        :param index: URL of the index.
        :raises ValueError: if it names another source of packages.
        """
        found = {key: value for key, value in self._settings.items() if key[1] in _SOURCES}
        others = sorted({name for (_, name), value in found.items() if name != "index-url" or value != index})
        if others:
            raise ValueError(f"sets {' and '.join(others)}")
        return ("global", "index-url") in found

    def check_own_index(self) -> None:
        """Check that all packages come from one index, which is not the public one.

        :raises ValueError: if pip would look elsewhere, too.
        """
        others = sorted({name for _, name in self._settings if name in _SOURCES and name not in _INDEXES})
        if others:
            raise ValueError(f"sets {' and '.join(others)}")
        used = [
            value
            for (section, name), value in self._settings.items()
            if section in ("global", "install") and name in _INDEXES
        ]
        if not used or any(not value or _PUBLIC_INDEX.fullmatch(value) for value in used):
            raise ValueError("names no index of the environment's own")

    def insertion(self, index: str) -> tuple[int, str]:
        """Return the line number after which to insert text that names an index, and the text. 0 is the end.

        :param index: URL of the index.
        :raises ValueError: if pip would not read it wherever it is inserted.
        """
        wanted = {**self._settings, ("global", "index-url"): index}
        # What looks like the header of a section may be part of a value.
        headers = [number for number, line in enumerate(_lines(self._text), 1) if _HEADER.match(line)]
        for at in headers[:_MAX_HEADERS] or [0]:
            added = self._line(at, index)
            with suppress(ValueError):
                if _settings(self._inserted(at, added)) == wanted:
                    return at, added
        raise ValueError("is written in a way to which no line can be added")

    def with_index(self, index: str) -> str:
        """Return the text with an index added. All else stays as it is.

        :param index: URL of the index.
        :raises ValueError: as :meth:`insertion`.
        """
        return self._inserted(*self.insertion(index))

    def _line(self, at: int, index: str) -> str:
        lines = _lines(self._text)
        before, after = lines[at - 1] if lines else "", lines[at:] if at else []
        # A line that is indented more than the one before continues that one's value.
        following = next((line for line in after if line.strip() and line.lstrip()[0] not in "#;"), "")
        indent = "" if _SECTION.match(following) else following[: len(following) - len(following.lstrip())]
        end = "" if before.endswith("\n") or not before else "\n"
        return f"{end}{'' if at else '[global]' + chr(10)}{indent}index-url = {index}\n"

    def _inserted(self, at: int, added: str) -> str:
        lines = _lines(self._text)
        at = at or len(lines)
        return "".join([*lines[:at], added, *lines[at:]])


def _lines(text: str) -> list[str]:
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def _settings(text: str) -> dict[tuple[str, str], str]:
    """Return all settings by section and name, as pip reads them."""
    parser = RawConfigParser()
    try:
        parser.read_string(text)
    except Error:
        # The parser's message quotes the file.
        raise ValueError("cannot be read by pip") from None
    return {
        (section, name.lower().replace("_", "-").removeprefix("--")): value or ""
        for section, settings in parser.items()
        for name, value in settings.items()
    }
