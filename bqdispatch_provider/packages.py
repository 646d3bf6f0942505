"""Python packages of a deployment: the wheel that it uploads, and an environment's pip.conf."""

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

_FILE = re.compile(r"airflow_provider_bqdispatch-(?P<version>[0-9A-Za-z.+!_]+)(-[0-9][^-]*)?-[^-]+-[^-]+-[^-]+\.whl")
_VERSION = re.compile(r'^__version__ = "(.+)"$', re.MULTILINE)
_SHA256 = re.compile(r"sha256=([0-9a-f]{64})")
_METADATA = re.compile(r"[^/]+\.dist-info/METADATA")
_MAX_METADATA_BYTES = 1_000_000
_SOURCES = ("index-url", "pypi-url", "extra-index-url", "find-links", "no-index")
"""Settings of pip that say where packages come from; ``pypi-url`` is another name for the first."""

_HEADER = re.compile(r"[ \t]*\[global\]")
_SECTION = re.compile(r"[ \t]*\[")
_USER_INFO = re.compile(r"//([^/@\s]+)@")


@dataclass(frozen=True)
class Wheel:
    """The wheel that is to be deployed.

    :param file: where it lies, or will lie.
    :param version: the package's.
    :param url: where it has to be downloaded from; empty: nowhere.
    :param sha256: what it has to be, in hex; empty: not given.
    """

    file: Path
    version: str
    url: str = ""
    sha256: str = ""

    @classmethod
    def of(cls, given: str) -> Wheel:
        """Read what a user gives: a path or a URL, and ``#sha256=…``, which a URL must have.

        :param given: as pip takes it.
        :raises ValueError: if it is no wheel of this package, or not the one that was meant.
        """
        place, hash_mark, fragment = given.partition("#")
        found = _SHA256.fullmatch(fragment)
        if hash_mark and not found:
            raise ValueError(f"{given!r} ends with #{fragment}; expected #sha256= and 64 hex digits in lower case")
        sha256 = found[1] if found else ""
        if "://" not in place:
            wheel = cls(Path(place), _version_of(Path(place).name), sha256=sha256)
            wheel.digests()
            return wheel
        if urlsplit(place).scheme not in ("http", "https"):
            raise ValueError(f"{place!r} is no URL of a wheel; expected https://…, or a path")
        if not sha256:
            raise ValueError(f"{place!r} is given without a hash; expected {place}#sha256=… (`sha256sum` prints it)")
        name = unquote(urlsplit(place).path.rpartition("/")[2])
        return cls(Path("dist") / name, _version_of(name), given, sha256)

    @classmethod
    def of_checkout(cls) -> Wheel | None:
        """Return the wheel that ``make dist`` builds here; ``None`` if this folder is no checkout of the project."""
        project, module = Path("pyproject.toml"), Path("bqdispatch_provider/__init__.py")
        if not (Path("Makefile").is_file() and project.is_file() and module.is_file()):
            return None
        version = _VERSION.search(module.read_text())
        if version is None or f'name = "{PACKAGE}"' not in project.read_text():
            return None
        return cls(Path("dist") / f"{PACKAGE.replace('-', '_')}-{version[1]}-py3-none-any.whl", version[1])

    def digests(self) -> set[str]:
        """Read the file, and check that it is what it should be.

        :returns: its SHA-256 as Artifact Registry may give it: in hex and in base64.
        :raises ValueError: if it is not.
        """
        try:
            digest = hashlib.sha256(self.file.read_bytes())
        except OSError as error:
            raise ValueError(f"{str(self.file)!r} cannot be read: {error}") from error
        if self.sha256 and digest.hexdigest() != self.sha256:
            raise ValueError(f"{str(self.file)!r} has the SHA-256 {digest.hexdigest()}; expected {self.sha256}")
        name, version = _metadata(self.file)
        if re.sub(r"[-_.]+", "-", name).lower() != PACKAGE or version != self.version:
            raise ValueError(
                f"{str(self.file)!r} is {name!r} {version!r} by its METADATA; expected {PACKAGE} {self.version}"
            )
        return {digest.hexdigest(), base64.b64encode(digest.digest()).decode()}


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
    """An environment's pip.conf, which may hold passwords: no message shows any of it.

    :param text: its content.
    :raises ValueError: if pip cannot read it.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._settings = _settings(text)

    @property
    def hidden(self) -> tuple[str, ...]:
        """Texts that no message may show: lines, values, and the names and passwords in URLs."""
        lines = [line.strip() for line in self._text.splitlines()]
        values = [word for value in self._settings.values() for word in value.split()]
        users = [user for value in values for user in _USER_INFO.findall(value)]
        words = [part for user in users for part in (user, *user.split(":"))]
        words += [unquote(word) for word in words]
        return tuple({each for each in (*lines, *values, *words) if len(each) > 2})

    def names(self, index: str) -> bool:
        """Tell whether pip takes all packages from an index, and from nowhere else.

        :param index: its URL.
        :raises ValueError: if pip takes packages from somewhere else.
        """
        found = {key: value for key, value in self._settings.items() if key[1] in _SOURCES}
        others = sorted({name for (_, name), value in found.items() if name != "index-url" or value != index})
        if others:
            raise ValueError(f"sets {' and '.join(others)}")
        return ("global", "index-url") in found

    def line_for(self, index: str) -> tuple[int, str]:
        """Return what has to be added, and after which line; 0: after the last one.

        :param index: the index's URL.
        :raises ValueError: if nothing that could be added would mean that to pip.
        """
        wanted = {**self._settings, ("global", "index-url"): index}
        # What looks like the section's beginning may be part of a value.
        for at in [number for number, line in enumerate(_lines(self._text), 1) if _HEADER.match(line)] or [0]:
            added = self._added(at, index)
            with suppress(ValueError):
                if _settings(self._inserted(at, added)) == wanted:
                    return at, added
        raise ValueError("is written in a way to which no line can be added")

    def with_index(self, index: str) -> str:
        """Return the text with an index added; all else is as it was.

        :param index: its URL.
        :raises ValueError: as :meth:`line_for`.
        """
        return self._inserted(*self.line_for(index))

    def _added(self, at: int, index: str) -> str:
        lines = _lines(self._text)
        before, after = lines[at - 1] if lines else "", lines[at:] if at else []
        # A line that begins further to the right would go on with the value before it.
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
    """All settings by section and name, as pip reads them."""
    parser = RawConfigParser()
    try:
        parser.read_string(text)
    except Error:
        # The parser's message quotes the file.
        raise ValueError("cannot be read by pip") from None
    sections = [*parser.sections(), *([parser.default_section] if parser.defaults() else [])]
    items = [(section, *item) for section in sections for item in _items(parser, section)]
    return {(section, name.lower().replace("_", "-").removeprefix("--")): value for section, name, value in items}


def _items(parser: RawConfigParser, section: str) -> list[tuple[str, str]]:
    items = parser.defaults().items() if section == parser.default_section else parser.items(section)
    return [(name, value or "") for name, value in items]
