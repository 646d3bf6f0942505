"""Output and exit codes of the commands: tables, errors, logs, progress, and a graceful stop.

Standard output carries only documents and tables. Logs, errors and progress go to standard error.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from bqdispatch_provider.names import in_one_line

if TYPE_CHECKING:
    from bqdispatch_provider.gcp.threads import StopRequest

OK, FAILED, CANNOT_START, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 130, 141
"""Exit codes. The last two are 128 and the number of the signal, as in a shell."""

_STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red"}


def printable(text: str) -> str:
    """Escape what a terminal would obey in untrusted names. Different texts stay different."""
    return "".join(
        each if each.isprintable() and each != "\\" else each.encode("unicode_escape").decode() for each in text
    )


def print_error(text: object) -> None:
    """Print an error that may quote untrusted names.

    :param text: the error, or its message.
    """
    print(printable(str(text)), file=sys.stderr)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: with borders on a terminal, else one line for each row with tabs between its cells.

    :param columns: the heads, which only a terminal shows.
    :param rows: the cells of each row; they may quote untrusted names.
    """
    if not sys.stdout.isatty():
        for row in rows:
            print(*map(printable, row), sep="\t")
    elif rows:
        from rich.console import Console  # noqa: PLC0415  (only a terminal needs it)
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        table = Table(*columns)
        for row in rows:
            table.add_row(*(Text(printable(each), _STYLES.get(each, ""), overflow="fold") for each in row))
        Console().print(table)


def print_commands(commands: Iterable[str]) -> None:
    """Print commands, each whole on a line of its own, so that it can be copied.

    :param commands: they may quote untrusted names; each is printed once, and an empty one is left out.
    """
    for command in filter(None, dict.fromkeys(commands)):
        print(in_one_line(command))


class _OneLineFormatter(logging.Formatter):
    """Keeps a message on one line, also when it quotes names with line breaks."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = in_one_line(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        return "\n".join(map(in_one_line, super().formatException(ei).split("\n")))


def log_to_stderr(verbose: bool) -> None:
    """Send the logs to standard error.

    :param verbose: log every dispatched event. Otherwise log warnings on a terminal, which shows the progress, and
        each cycle elsewhere.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLineFormatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    level = logging.DEBUG if verbose else logging.WARNING if sys.stderr.isatty() else logging.INFO
    logging.getLogger("bqdispatch_provider").setLevel(level)


@contextmanager
def graceful_stop(stop: StopRequest) -> Iterator[None]:
    """Turn the first SIGTERM or Ctrl-C into a request to stop. The next one has its usual effect.

    A dispatcher killed between a copy and its delete would deliver the event twice.

    :param stop: the request, which the command obeys.
    """

    def handle(number: int, _: object) -> None:
        stop.make()
        signal.signal(number, before[number])
        with suppress(OSError, ValueError):  # print could strike while something else is printed, and raise
            os.write(sys.stderr.fileno(), b"Stopping: finishing what has begun; Ctrl-C again stops at once\n")

    before: dict[int, Any] = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def airflow_to_stderr() -> Iterator[None]:
    """Send to standard error what Airflow writes to standard output. Import it inside of this.

    On import, Airflow gives the root logger a handler for standard output. Afterwards the handlers are those of before.
    """
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


@contextmanager
def progress(first: str) -> Iterator[Callable[[str], None]]:
    """Show on a terminal what the command is doing, in one line. Elsewhere nothing is shown.

    :param first: the line at the start.
    :returns: a function that replaces the line.
    """
    if not sys.stderr.isatty():
        yield lambda line: None
        return
    from rich.console import Console  # noqa: PLC0415  (only a terminal needs it)

    with Console(stderr=True).status(first) as status:
        yield status.update
