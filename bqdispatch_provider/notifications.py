"""A notifier for Slack: errors of a run, quarantines and stuck windows, each cause once an hour."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseNotifier

from bqdispatch_provider.compat import mask, slack_client
from bqdispatch_provider.hooks import BqDispatchHook
from bqdispatch_provider.journal import RunJournal, place_of_run
from bqdispatch_provider.names import in_one_line, in_words
from bqdispatch_provider.planning import due

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from bqdispatch_provider.config import DispatchConfig
    from bqdispatch_provider.dispatcher import Dispatcher
    from bqdispatch_provider.report import Report

SLACK = "https://slack.com/api/"
EVERY = timedelta(hours=1)
"""How long a cause is not told again, whichever task, run or process meets it."""

MOST = 20
"""Causes in a message; the others are told by the next one."""

_LONGEST = 500
_MAX_TOKEN_BYTES = 1 << 17
"""Bytes of an encrypted token: KMS encrypts 64 KiB at most, which base64 makes longer by a third."""

_TOKEN = re.compile(r"[\x21-\x7e]+")


class SlackError(RuntimeError):
    """A message that Slack has not taken, and why; it never holds the token."""


@dataclass(frozen=True)
class Cause:
    """Something that a person should know.

    :param kind: ``error``, ``quarantined``, ``stuck window`` or ``failed``.
    :param what: which object it is about; numbers in it do not make it another cause.
    :param sentence: what has happened.
    :param remedy: what to do.
    """

    kind: str
    what: str
    sentence: str
    remedy: str

    @property
    def hash(self) -> str:
        """What is the same for the same cause."""
        return hashlib.sha256(f"{self.kind} {re.sub(r'[0-9]+', '#', self.what)}".encode()).hexdigest()[:32]


class BqDispatchNotifier(BaseNotifier):
    """Tells Slack of run errors, quarantines and stuck windows: a callback of tasks, or of a DAG.

    Give it to the :class:`DispatchReportOperator`, or to a :class:`DispatchOperator` on its own, as both
    ``on_failure_callback`` and ``on_success_callback``: an event that could not be dispatched does not fail a task.
    As a DAG's callback it tells what the documents of the run say. Where a sensor that finds nothing is to tell of
    stuck windows too, give it to that as ``on_skipped_callback``.
    Each cause is told once an hour, whatever task, run or process meets it: ``<JournalURL>/notified/`` holds what was
    told. That Slack cannot be told never fails a task, and is a line in its log.

    The token is that of the Slack provider's connection where one is named, otherwise that of the configuration's
    ``SlackCredentials``, which Cloud KMS decrypts.

    :param channel: where to, ``#data-ops`` or its ID (templated).
    :param bqdispatch_conn_id: ID of the connection, of type ``bqdispatch`` (templated).
    :param slack_conn_id: ID of a connection of the Slack provider, which has to be installed (templated).
    :param variables: values for ``${name}`` in the configuration document.
    :param stuck_after: minutes after which a window that is due, or was claimed, and has not been fired is stuck.
    """

    template_fields: Sequence[str] = ("channel", "bqdispatch_conn_id", "slack_conn_id")

    def __init__(
        self,
        channel: str,
        *,
        bqdispatch_conn_id: str = BqDispatchHook.default_conn_name,
        slack_conn_id: str | None = None,
        variables: Mapping[str, str] | None = None,
        stuck_after: float = 15.0,
    ) -> None:
        super().__init__()
        self.channel = channel
        self.bqdispatch_conn_id = bqdispatch_conn_id
        self.slack_conn_id = slack_conn_id
        self.variables = variables
        self.stuck_after = stuck_after

    def notify(self, context: Context) -> None:
        """Tell what has not been told yet.

        :param context: the task's.
        """
        try:
            self._notify(context)
        except Exception as error:  # without its traceback, in whose frames the token may be
            self.log.error("Slack was not told: %s", in_words(error)[:_LONGEST])

    def _notify(self, context: Context) -> None:
        hook = BqDispatchHook(self.bqdispatch_conn_id)
        with hook.get_dispatcher(variables=self.variables) as dispatcher:
            asked: set[str] = set()
            claimed: dict[str, tuple[Cause, int]] = {}
            for cause in self._causes(context, dispatcher):
                url = f"{dispatcher.config.journal_url.rstrip('/')}/notified/{cause.hash}.json"
                if url in asked:
                    continue
                asked.add(url)
                note = {"Kind": cause.kind, "What": in_one_line(cause.what), "Owner": uuid.uuid4().hex}
                if (generation := dispatcher.store.claim(url, note, EVERY)) is not None:
                    claimed[url] = (cause, generation)
                if len(claimed) == MOST:
                    break
            if not claimed:
                return
            try:
                self._post(hook, dispatcher, _text(context, [cause for cause, _ in claimed.values()]))
            except BaseException:
                for url, (_, generation) in claimed.items():
                    dispatcher.store.remove(url, generation)
                raise
            self.log.info("Slack was told of %d causes", len(claimed))

    def _causes(self, context: Context, dispatcher: Dispatcher) -> Iterator[Cause]:
        of_dag = "reason" in context
        journal = RunJournal(dispatcher, place_of_run(context) if of_dag else context)
        documents = [] if of_dag else [(journal.read_document(journal.own_url), journal.own_url)]
        if not any(report for report, _ in documents):
            documents = [(journal.read_document(), journal.document_url)]
        if of_dag:  # its task is any that has ended last
            documents += [(part.report, part.urls[0]) for part in journal.parts()]
        reports = [(report, url) for report, url in documents if report is not None]
        for report, url in reports:
            yield from _of_report(report, url)
        if all(report.ok for report, _ in reports):
            yield from _failure(context)
        yield from self._stuck(dispatcher)

    def _stuck(self, dispatcher: Dispatcher) -> Iterator[Cause]:
        listing = dispatcher.listing()
        long_ago = listing.now - timedelta(minutes=self.stuck_after)
        for window, firing in dispatcher.unfired(listing):
            if firing is None and due(window, long_ago):
                said = f"was due {window.name.end:%Y-%m-%d %H:%M} UTC, and nobody has fired it"
            elif firing is not None and firing.claimed < long_ago:
                said = f"was claimed {firing.claimed:%Y-%m-%d %H:%M} UTC, and not fired"
            else:
                continue
            yield Cause(
                "stuck window",
                window.name.dest,
                f"the window {dispatcher.store.task_url(window.object.name)!r} {said}",
                "see whether the dispatching DAG runs, whether MaxConcurrentJobs lets nothing through, and what the "
                "report's Errors say",
            )

    def _post(self, hook: BqDispatchHook, dispatcher: Dispatcher, text: str) -> None:
        # Names are untrusted: nothing in them is to become a link or a mention.
        harmless = {"mrkdwn": False, "parse": "none", "link_names": False, "unfurl_links": False}
        message: dict[str, Any] = {"channel": self.channel, "text": text, **harmless}
        if self.slack_conn_id:
            if (client := slack_client(self.slack_conn_id)) is None:
                raise SlackError(
                    "the Slack provider is not installed: pip install 'airflow-provider-bqdispatch[slack]', or leave "
                    "slack_conn_id out and set SlackCredentials in the configuration"
                )
            client.chat_postMessage(**message)
        else:
            _post_with(_token(hook, dispatcher), message)


def _failure(context: Any) -> Iterator[Cause]:
    """Tell of a failure for which no document has a reason."""
    if reason := context.get("reason"):
        if reason != "success":
            dag = context["dag"].dag_id
            yield Cause(
                "failed", f"{dag} {reason}", f"a run of the DAG {dag} has failed: {reason}", "look at its tasks"
            )
        return
    ti = context["ti"]
    # Airflow 3.1 does not always say why.
    if failed := context.get("exception") or (ti.state == "failed" and "its log says why"):
        task = f"{ti.dag_id}.{ti.task_id}"
        said = in_words(failed) if isinstance(failed, BaseException) else in_one_line(str(failed))
        yield Cause("failed", f"{task} {said}", f"the task {task} has failed: {said}", "look at its log")


def _of_report(report: Report, url: str) -> Iterator[Cause]:
    for error in report.errors:
        yield Cause("error", error, error, f"the next run takes up again what waits; all errors are in {url}")
    for name, reason in report.quarantined.items():
        yield Cause(
            "quarantined",
            name,
            f"{name!r} was set aside: {reason}",
            "the command bqdispatch replay shows it, and takes it back into the task folder",
        )


def _text(context: Context, causes: Sequence[Cause]) -> str:
    """The message: plain text, but for what Slack takes for a link or a mention in that too."""
    dag, run = context["dag"].dag_id, context["run_id"]
    whose = dag if "reason" in context else f"{dag}.{context['ti'].task_id}"
    lines = [f"BqTail dispatch: {_escaped(f'{whose}, run {run}')}"]
    lines += [f"• {cause.kind}: {_escaped(cause.sentence)}\n    → {_escaped(cause.remedy)}" for cause in causes]
    return "\n".join(lines)


def _escaped(text: str) -> str:
    text = in_one_line(text)
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _token(hook: BqDispatchHook, dispatcher: Dispatcher) -> str:
    """The token that ``SlackCredentials`` points to (docs/protocol.md, "Configuration document")."""
    config = dispatcher.config
    if config.slack_credentials is None:
        raise SlackError(
            f"the connection {hook.bqdispatch_conn_id!r} has no SlackCredentials in its configuration; set them, or "
            "give BqDispatchNotifier a slack_conn_id"
        )
    try:
        encrypted = dispatcher.store.read(config.slack_credentials.url, _MAX_TOKEN_BYTES)
    except ValueError as error:
        raise SlackError(f"what {config.slack_credentials.url} holds is no encrypted token: {error}") from None
    # `gcloud kms encrypt` writes bytes, other tools base64 of them.
    decrypted = hook.decrypt(_key(config), encrypted if encrypted[:1] == b"\n" else _unbase64(encrypted))
    try:
        token = str(json.loads(decrypted)["Token"]).strip()
    except (ValueError, KeyError, TypeError):
        token = ""
    if not _TOKEN.fullmatch(token):
        # Not shown, and no cause: it may hold the token.
        raise SlackError(f'what {config.slack_credentials.url} holds is not {{"Token": "xoxb-…"}}, encrypted') from None
    mask(token)
    return token


def _key(config: DispatchConfig) -> str:
    assert config.slack_credentials is not None  # noqa: S101
    ring, _, key = config.slack_credentials.key.partition("/")
    if config.slack_credentials.key.startswith("projects/"):
        return config.slack_credentials.key
    return f"projects/{config.project_id}/locations/{config.region}/keyRings/{ring}/cryptoKeys/{key}"


def _unbase64(text: bytes) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return text


def _post_with(token: str, message: Mapping[str, Any]) -> None:
    import requests  # noqa: PLC0415  (costs 0.1 s in every DAG file)

    answer = requests.post(
        f"{SLACK}chat.postMessage", json=message, headers={"Authorization": f"Bearer {token}"}, timeout=10
    )
    answer.raise_for_status()
    said = answer.json()
    if not said.get("ok"):
        raise SlackError(f"Slack answered {in_one_line(str(said.get('error')))[:100]!r}")
