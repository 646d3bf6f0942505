"""A notifier for Slack: errors of a run, quarantined events and stuck windows, each alert once an hour."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseNotifier

from bqdispatch_provider.compat import mask, slack_client
from bqdispatch_provider.core.windows import is_due
from bqdispatch_provider.hooks import BqDispatchHook
from bqdispatch_provider.journal import RunJournal, run_journal_paths
from bqdispatch_provider.names import JournalName, counted, in_one_line, in_words

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from bqdispatch_provider.config import DispatchConfig
    from bqdispatch_provider.core.report import Report
    from bqdispatch_provider.cycle.task_folder import TaskFolder

SLACK = "https://slack.com/api/"
REPEAT_AFTER = timedelta(hours=1)
"""Time for which an alert is not repeated, whichever task, run or process raises it."""

CLAIM_EXPIRES_AFTER = timedelta(minutes=1)
"""Time after which another process may post an alert, if the one that claimed it was killed before Slack had it."""

MAX_ALERTS = 20
"""Alerts in one message. The next message has the others."""

_MAX_TEXT_CHARS = 500
_MAX_TOKEN_BYTES = 1 << 17
"""Bytes of an encrypted token. KMS encrypts 64 KiB at most, and base64 adds a third."""

_CUT_ENTITY = re.compile(r"&[a-z]*$")
_TOKEN = re.compile(r"[\x21-\x7e]+")


class SlackError(RuntimeError):
    """A message that Slack did not accept. The error never contains the token."""


@dataclass(frozen=True)
class Alert:
    """Something that a person should know.

    :param kind: ``error``, ``quarantined``, ``stuck window`` or ``failed``.
    :param what: what the alert is about. Alerts that differ in numbers only are the same.
    :param sentence: what happened.
    :param remedy: what to do.
    """

    kind: str
    what: str
    sentence: str
    remedy: str

    @property
    def hash(self) -> str:
        """The same text for the same alert."""
        return hashlib.sha256(f"{self.kind} {re.sub(r'[0-9]+', '#', self.what)}".encode()).hexdigest()[:32]


@dataclass(frozen=True)
class _Claim:
    """An alert that this process is about to post.

    :param url: of the claim.
    :param posted_url: of the note that the alert was posted.
    :param generation: of the claim.
    """

    alert: Alert
    url: str
    posted_url: str
    generation: int = 0
    owner: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def note(self) -> dict[str, str]:
        """The content of both objects."""
        return {"Kind": self.alert.kind, "What": in_one_line(self.alert.what), "Owner": self.owner}


class BqDispatchNotifier(BaseNotifier):
    """A callback of tasks or of a DAG that posts run errors, quarantined events and stuck windows to Slack.

    Set it on the DAG as both ``on_failure_callback`` and ``on_success_callback``: an event that could not be dispatched
    fails neither a task nor the run. It then posts what the run's documents say, and stuck windows even if there was
    nothing to dispatch. It is also a callback of a
    :class:`~bqdispatch_provider.operators.DispatchReportOperator`, of a
    :class:`~bqdispatch_provider.operators.DispatchOperator` without report, and of a sensor (``on_skipped_callback``).
    A task's callback never hears that Airflow failed the task because its asset events collided with another's.

    Each alert is posted once an hour, whichever task, run or process raises it; ``<JournalURL>/notified/`` holds what
    was posted. An unreachable Slack never fails a task, and is an error in its log.

    The token is that of the Slack connection. Without one it is that of the configuration's ``SlackCredentials``, which
    Cloud KMS decrypts.

    :param channel: channel to post to, ``#data-ops`` or its ID (templated).
    :param bqdispatch_conn_id: ID of the connection, of type ``bqdispatch``. Default: that of the task; as a DAG's
        callback, or of a task that has none, that of the DAG's first task that has one (templated).
    :param slack_conn_id: ID of a connection of the Slack provider, which has to be installed. Default: the
        configuration's ``SlackCredentials`` (templated).
    :param variables: values for ``${name}`` in the configuration document. They win over the connection's own. Default:
        those of the task whose connection is taken.
    :param stuck_after: minutes, or a timedelta, after which a window is stuck that is due or claimed, and was not
        fired.
    :raises ValueError: if ``channel`` or ``variables`` is no such thing, or ``stuck_after`` is no number or below 0.
    """

    template_fields: Sequence[str] = ("channel", "bqdispatch_conn_id", "slack_conn_id")

    def __init__(
        self,
        channel: str,
        *,
        bqdispatch_conn_id: str | None = None,
        slack_conn_id: str | None = None,
        variables: Mapping[str, str] | None = None,
        stuck_after: timedelta | float = 15.0,
    ) -> None:
        super().__init__()
        if not isinstance(channel, str) or not channel:
            raise ValueError(f"channel is {channel!r}; expected a channel of Slack, such as '#data-ops', or its ID")
        if not isinstance(variables, Mapping | None):
            raise ValueError(f"variables is {variables!r}; expected a dict")
        self.channel = channel
        self.bqdispatch_conn_id = bqdispatch_conn_id
        self.slack_conn_id = slack_conn_id
        self.variables = variables
        self.stuck_after = _minutes("stuck_after", stuck_after)

    def notify(self, context: Context) -> None:
        """Post what was not posted yet.

        :param context: the task's, or the DAG's.
        """
        try:
            self._notify(context)
        except Exception as error:  # without the traceback, whose frames may contain the token
            self.log.error(
                "Could not post to Slack channel %r; the next run tries again: %s",
                self.channel,
                in_words(error)[:_MAX_TEXT_CHARS],
            )

    def _notify(self, context: Context) -> None:
        from bqdispatch_provider.gcp.errors import GOOGLE_ERRORS  # noqa: PLC0415  (DAG files import this module)

        conn_id, variables = self.bqdispatch_conn_id, self.variables
        if not conn_id:
            conn_id, of_task = _connection(context)
            variables = of_task if variables is None else variables
        hook = BqDispatchHook(conn_id)
        with hook.get_task_folder(variables) as folder:
            claims: list[_Claim] = []
            try:
                self._claim(self._alerts(context, folder), folder, claims)
                if claims:
                    self._post(hook, folder, _text(context, [each.alert for each in claims]))
            except BaseException:
                for each in claims:
                    with suppress(*GOOGLE_ERRORS):  # it expires
                        folder.store.remove(each.url, each.generation)
                raise
            if claims:
                self.log.info("Posted %s to Slack", counted(len(claims), "alert"))
            for each in claims:
                try:
                    folder.store.write_json(each.posted_url, each.note)
                except GOOGLE_ERRORS as error:
                    self.log.warning("%s cannot be written, so it is told again: %s", each.posted_url, in_words(error))

    @staticmethod
    def _claim(alerts: Iterator[Alert], folder: TaskFolder, claims: list[_Claim]) -> None:
        """Claim the alerts of this message in the journal, so that nobody else posts them meanwhile.

        A claim stays beside the note that the alert was posted: a process that did not see that note yet finds it.

        :param claims: receives them, also if a later alert cannot be claimed.
        """
        seen: set[str] = set()
        for alert in alerts:
            url = f"{folder.config.journal_url}{JournalName.NOTIFIED}{alert.hash}"
            if url in seen:
                continue
            seen.add(url)
            claim = _Claim(alert, f"{url}.claim", f"{url}.json")
            age = folder.store.age(claim.posted_url)
            if age is not None and age < REPEAT_AFTER:
                continue
            generation = folder.store.write_if_older_than(claim.url, claim.note, CLAIM_EXPIRES_AFTER)
            if generation is not None:
                claims.append(replace(claim, generation=generation))
            if len(claims) == MAX_ALERTS:
                break

    def _alerts(self, context: Context, folder: TaskFolder) -> Iterator[Alert]:
        store, config = folder.store, folder.config
        documents: list[tuple[Report | None, str]] = []
        if "reason" in context:  # a DAG's context has an arbitrary task, so read the documents of all
            for path in run_journal_paths(context):
                journal = RunJournal(store, config, path)
                documents += [(journal.read_document(), journal.document_url)]
                documents += [(part.report, part.url) for part in journal.task_reports()]
        else:
            journal = RunJournal(store, config, context)
            documents = [(journal.read_document(journal.task_url), journal.task_url)]
            if not documents[0][0]:
                documents = [(journal.read_document(), journal.document_url)]
        reports = [(report, url) for report, url in documents if report is not None]
        for report, url in reports:
            yield from _alerts_of(report, url)
        if all(report.ok for report, _ in reports):
            yield from _failure(context)
        yield from self._stuck_windows(folder)

    def _stuck_windows(self, folder: TaskFolder) -> Iterator[Alert]:
        listing = folder.listing()
        long_ago = listing.now - self.stuck_after
        for window, firing in folder.unfired(listing, lambda _: True):
            if firing is None and is_due(window.name, long_ago):
                said = f"was due {window.name.end:%Y-%m-%d %H:%M} UTC, and was not fired"
            elif firing is not None and firing.claimed < long_ago:
                said = f"was claimed {firing.claimed:%Y-%m-%d %H:%M} UTC, and was not fired"
            else:
                continue
            yield Alert(
                "stuck window",
                window.name.dest,
                f"the window {folder.store.task_url(window.object.name)!r} {said}",
                "check whether the dispatching DAG runs, whether its project is at MaxConcurrentJobs, and the Errors "
                "of the report",
            )

    def _post(self, hook: BqDispatchHook, folder: TaskFolder, text: str) -> None:
        # Names are untrusted, and must not become links or mentions.
        harmless = {"mrkdwn": False, "parse": "none", "link_names": False, "unfurl_links": False}
        message: dict[str, Any] = {"channel": self.channel, "text": text, **harmless}
        if self.slack_conn_id:
            if (client := slack_client(self.slack_conn_id)) is None:
                raise SlackError(
                    "the Slack provider is not installed: pip install apache-airflow-providers-slack, or leave "
                    "slack_conn_id out and set SlackCredentials in the configuration"
                )
            client.chat_postMessage(**message)
        else:
            _post_with(_token(hook, folder), message)


def _minutes(argument: str, value: Any) -> timedelta:
    """Return the time that an argument says in minutes, or as a timedelta.

    :raises ValueError: if it says something else, or less than none.
    """
    with suppress(TypeError, ValueError, OverflowError):
        time = value if isinstance(value, timedelta) else timedelta(minutes=float(value))
        if time >= timedelta(0):
            return time
    raise ValueError(f"{argument} is {value!r}; expected a number of minutes, 0 or more, or a timedelta")


def _connection(context: Any) -> tuple[str, Mapping[str, str] | None]:
    """Return the ID of the connection, and the variables, with which the context's task, or its DAG, dispatches."""
    # A DAG's context may have a task, but an arbitrary one.
    own = [] if "reason" in context else [context["ti"].task]
    for task in (*own, *getattr(context["dag"], "tasks", ())):
        if isinstance(conn_id := _argument(task, "bqdispatch_conn_id"), str):
            # A DAG's tasks are not rendered.
            conn_id, variables = task.render_template((conn_id, _argument(task, "variables")), context)
            return conn_id, variables
    return BqDispatchHook.default_conn_name, None


def _argument(task: Any, name: str) -> Any:
    """Return an argument of a task; of a mapped one, what all its copies are given."""
    partial: Mapping[str, Any] | None = getattr(task, "partial_kwargs", None)
    return getattr(task, name, None) if partial is None else partial.get(name)


def _failure(context: Any) -> Iterator[Alert]:
    """Report a failed task or DAG run, for which no document has an error."""
    if reason := context.get("reason"):
        if reason != "success":
            dag = context["dag"].dag_id
            yield Alert("failed", f"{dag} {reason}", f"a run of the DAG {dag} has failed: {reason}", "check its tasks")
        return
    ti = context["ti"]
    # Airflow 3.1 does not always pass the exception.
    if failed := context.get("exception") or (ti.state == "failed" and "its log says why"):
        task = f"{ti.dag_id}.{ti.task_id}"
        said = in_words(failed) if isinstance(failed, BaseException) else in_one_line(str(failed))
        yield Alert("failed", f"{task} {said}", f"the task {task} has failed: {said}", "check its log")


def _alerts_of(report: Report, url: str) -> Iterator[Alert]:
    for error in report.errors:
        yield Alert("error", error, error, f"events that wait are tried again by the next run; all errors: {url}")
    for name, reason in report.quarantined.items():
        yield Alert(
            "quarantined",
            name,
            f"{name!r} was quarantined: {reason}",
            "list it with bqdispatch replay, which can also move it back into the task folder",
        )


def _text(context: Context, alerts: Sequence[Alert]) -> str:
    """Return the message: plain text, with what Slack reads as a link or a mention escaped."""
    dag, run = context["dag"].dag_id, context["run_id"]
    whose = dag if "reason" in context else f"{dag}.{context['ti'].task_id}"
    lines = [f"BqTail dispatch: {_escaped(f'{whose}, run {run}')}"]
    lines += [f"• {alert.kind}: {_escaped(alert.sentence)}\n    → {_escaped(alert.remedy)}" for alert in alerts]
    return "\n".join(lines)


def _escaped(text: str) -> str:
    """Return text that Slack shows as it is, cut in the form in which it is sent: Slack cuts messages that are long."""
    text = in_one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return text if len(text) <= _MAX_TEXT_CHARS else f"{_CUT_ENTITY.sub('', text[:_MAX_TEXT_CHARS])}…"


def _token(hook: BqDispatchHook, folder: TaskFolder) -> str:
    """Decrypt the token at the configuration's ``SlackCredentials``."""
    credentials = folder.config.slack_credentials
    if credentials is None:
        raise SlackError(
            f"the configuration of connection {hook.bqdispatch_conn_id!r} has no SlackCredentials; set them, or give "
            "BqDispatchNotifier a slack_conn_id"
        )
    try:
        encrypted = folder.store.read(credentials.url, _MAX_TOKEN_BYTES)
    except ValueError as error:
        raise SlackError(f"{credentials.url} is no encrypted token: {error}") from None
    # `gcloud kms encrypt` writes bytes, other tools base64 of them.
    key = _key_name(folder.config, credentials.key)
    try:
        decrypted = hook.decrypt(key, encrypted if encrypted[:1] == b"\n" else _unbase64(encrypted))
    except Exception as error:
        raise SlackError(f"{credentials.url} cannot be decrypted with {key!r}: {in_words(error)}") from error
    try:
        token: str = json.loads(decrypted)["Token"].strip()
    except (ValueError, KeyError, TypeError, AttributeError):
        token = ""
    if not _TOKEN.fullmatch(token):
        # Neither shown nor chained: it may contain the token.
        raise SlackError(f'{credentials.url} is not {{"Token": "xoxb-…"}}, encrypted') from None
    mask(token)
    return token


def _key_name(config: DispatchConfig, key: str) -> str:
    """Return a KMS key's full name."""
    if key.startswith("projects/"):
        return key
    ring, _, name = key.partition("/")
    return f"projects/{config.project_id}/locations/{config.region}/keyRings/{ring}/cryptoKeys/{name}"


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
    try:
        said = answer.json()
    except ValueError:
        said = None
    if not isinstance(said, dict):
        raise SlackError(f"Slack answered with {in_one_line(answer.text[:100])!r}; expected a JSON object")
    if not said.get("ok"):
        raise SlackError(
            f"Slack refused the message with {in_one_line(str(said.get('error')))[:100]!r}: if that does not pass, "
            "check that the token is valid and has chat:write, and that the app is a member of the channel"
        )
