"""Everything that the page shows of a set-up, in a form for JSON."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Set
from datetime import UTC, datetime, timedelta
from typing import Any

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.core.history import MAX_PROJECTS, Figures, looks
from bqdispatch_provider.core.model import Lane, lane_of
from bqdispatch_provider.core.pools import PoolProblem, pool_problem, slots_of
from bqdispatch_provider.core.setups import SetUp
from bqdispatch_provider.gcp.emulators import BIGQUERY, STORAGE, emulator
from bqdispatch_provider.links import object_page, page_of_job
from bqdispatch_provider.names import TraceName
from bqdispatch_provider.page.database import Database
from bqdispatch_provider.page.series import Range, Selection, is_cut, last_hour, point, series, total
from bqdispatch_provider.page.watcher import MAX_HELD, SetUpReading, Watcher
from bqdispatch_provider.view.health import Health, Level, last_look, silent_after
from bqdispatch_provider.view.journal_reader import KEPT_S
from bqdispatch_provider.view.overview import Overview, overview

_MADE_KEPT_S = 2.0
"""Time for which an answer made for one person is shown to others, too."""

_PREFIX = "bqdispatch_"

_CUT = (
    f"In some of the time {MAX_PROJECTS} projects or more were busy. The history keeps figures of the {MAX_PROJECTS} "
    "busiest of each five minutes, so those of {} may be too low."
)


class NotReadYet(Exception):
    """A journal is being read for the first time. It may name DAGs whose readers may see its set-up."""


def setup_of(conn_id: str) -> SetUp | None:
    """Return the set-up whose connection has an ID; ``None`` if no set-up's has.

    :param conn_id: ID of the connection.
    """
    name = conn_id.removeprefix(_PREFIX)
    try:
        setup = SetUp(None if name == "default" else name)
    except ValueError:
        return None
    return setup if setup.conn_id == conn_id else None


class SetUpState:
    """The state of one set-up.

    :param conn_id: ID of its connection.
    :param database: Airflow's.
    :param watcher: reads its journal.
    """

    def __init__(self, conn_id: str, database: Database, watcher: Watcher) -> None:
        self.conn_id = conn_id
        self.setup = setup_of(conn_id)
        self._name = (self.setup.name or "default") if self.setup else conn_id
        self._database, self.watcher = database, watcher
        self._lock = threading.Lock()
        self._made: dict[Selection, tuple[float, dict[str, Any]]] = {}

    def dags(self) -> set[str]:
        """Return the IDs of the DAGs whose readers may see it.

        The history names them. One that names none, or that cannot be read, is seen by readers of its own DAGs.
        """
        return self._dags(self.watcher.look())

    def _dags(self, reading: SetUpReading) -> set[str]:
        return {*reading.dags} or {*(self.setup.dag_ids if self.setup else ())}

    def brief(self) -> dict[str, Any]:
        """Return what the list of set-ups has of it."""
        return {
            "id": self.conn_id,
            "name": self._name,
            "health": self.made(Selection(Range.HOUR))["overview"]["health"],
        }

    def made(self, selection: Selection) -> dict[str, Any]:
        """Return all that the page shows, but for what not everybody may see.

        :param selection: the range of time, and the project.
        """
        reading = self.watcher.look(selection.span)
        with self._lock:
            made_at, made = self._made.get(selection, (-KEPT_S, {}))
            if made.get("read") == _text(reading.at) and time.monotonic() - made_at < _MADE_KEPT_S:
                return made
            made = self._make(reading, selection)
            if not selection.project or selection.project in made["overview"]["projects"]:
                self._made[selection] = time.monotonic(), made
            return made

    def _make(self, reading: SetUpReading, selection: Selection) -> dict[str, Any]:
        now = datetime.now(UTC)
        seen = self._overview(reading, selection.project, now).to_dict()
        del seen["errors"]  # the newest are enough
        if is_cut(reading.hours, selection, now):
            seen["problems"] = [*seen["problems"], _CUT.format(selection.project)]
        used = self._database.pools_used(self._dags(reading))
        limits = [{**each, "pool_problem": self._pool_problem(each, used)} for each in seen["limits"]]
        problem = next((each["pool_problem"] for each in limits if each["pool_problem"] and each["pool"] in used), "")
        if problem and _is_green(seen):
            sentence, _, step = problem.partition(". ")
            seen["health"] = {"level": str(Level.WARNING), "sentence": f"{sentence}.", "next_step": step}
        config = reading.config
        quarantine = [{**each, "console": _console(each["url"])} for each in (seen["quarantine"] or ())[:MAX_HELD]]
        return {
            "setup": {
                "id": self.conn_id,
                "name": self._name,
                "folder": config.async_task_url if config else "",
                "journal": config.journal_url if config else "",
                "pools": [self.setup.sql_pool, self.setup.jobs_pool] if self.setup else [],
            },
            "now": now.isoformat(timespec="milliseconds"),
            "read": _text(reading.at),
            "whole": _text(reading.whole),
            "unread": not reading.are_dags_known,
            "range": str(selection.span),
            "project": selection.project,
            "step_s": int(selection.span.step.total_seconds()),
            "overview": {
                **seen,
                "quarantine": quarantine,
                "limits": limits,
                **{key: [{**each, **_links(each, config)} for each in seen[key]] for key in ("waiting", "not_due")},
            },
            "quarantined": None if seen["quarantine"] is None else len(seen["quarantine"]),
            "figures": point(total(reading.hours, selection, now)),
            "series": series(reading.hours, selection, now),
        }

    def _pool_problem(self, use: Mapping[str, Any], used: Set[str]) -> str:
        """Say how a pool disagrees with the limit that it mirrors; empty if it does not.

        :param used: pools that tasks use; others need not be there.
        """
        if self.setup is None or not use["pool"]:
            return ""
        problem = pool_problem(slots_of(use["limit"]), use["pool_slots"])
        if problem is PoolProblem.MISSING and use["pool"] in used:
            found = f"There is no pool {use['pool']}: tasks in it never run"
            return f"{found}. Make it with `{self.setup.pools_command}`."
        if problem is PoolProblem.OTHER_SLOTS:
            slots = "no limit" if use["pool_slots"] < 0 else f"{use['pool_slots']} slots"
            found = f"The pool {use['pool']} has {slots}; {use['key']} is {use['limit']}"
            return f"{found}. Set it with `{self.setup.pools_command}`."
        return ""

    def _overview(self, reading: SetUpReading, project: str, now: datetime) -> Overview:
        if reading.config is None:
            said = reading.problems[0] if reading.problems else "The journal has not been read yet."
            step = "Test the connection in Airflow (Admin, Connections), or run bqdispatch smoke."
            if not reading.are_dags_known:
                step = "The page asks again in a moment."
            health = Health(Level.UNKNOWN, said, step)
            return Overview(now, None, health, {}, (), {}, (), None, problems=reading.problems)
        hour, seen = last_hour(reading.hours, now), looks(reading.hours)
        hour.seen = last_look(seen, reading.performance)  # also before that hour
        hour.projects = {each: Figures() for each in _projects(reading, now)} | hour.projects
        return overview(
            reading.report,
            reading.config,
            now,
            hour,
            reading.quarantine if reading.is_history_known else None,
            setup=self.setup,
            pools=self._database.pools(),
            problems=reading.problems,
            history_error=reading.history_error,
            silence=silent_after(seen),
            project=project,
        )


class State:
    """The state of all set-ups.

    :param database: Airflow's; by default the one that Airflow is configured for.
    """

    def __init__(self, database: Database | None = None) -> None:
        self._database = database or Database()
        self._lock = threading.Lock()
        self._setups: dict[str, SetUpState] = {}

    def setups(self, dag_ids: Iterable[str], conn_id: str = "") -> list[SetUpState]:
        """Return the set-ups that whoever may read some DAGs may see.

        :param dag_ids: IDs of the DAGs.
        :param conn_id: return only the set-up of this connection; by default all.
        :raises NotReadYet: if none is found, and a journal is being read for the first time. Also where no connection
            has the ID: the answer does not tell which connections there are.
        """
        readable, known = set(dag_ids), self._known()
        for setup in known:
            setup.watcher.begin()  # all at one time, before the first is waited for

        def seen() -> list[SetUpState]:
            return [setup for setup in known if conn_id in ("", setup.conn_id) and setup.dags() & readable]

        if found := seen():
            return found
        if not all(setup.watcher.look(Range.WEEK).are_dags_known for setup in known):
            raise NotReadYet
        return seen()  # it may have been read meanwhile

    def runs(self, dag_ids: Iterable[str]) -> list[Mapping[str, Any]]:
        """Return the last run of each of some DAGs, without those that do not exist.

        :param dag_ids: IDs of the DAGs.
        """
        return [run for dag_id in sorted(dag_ids) if (run := self._database.last_run(dag_id))]

    def _known(self) -> list[SetUpState]:
        conn_ids = self._database.conn_ids()
        with self._lock:
            for conn_id in self._setups.keys() - {*conn_ids}:
                del self._setups[conn_id]
            for conn_id in conn_ids:
                if conn_id not in self._setups:
                    self._setups[conn_id] = SetUpState(conn_id, self._database, Watcher(conn_id))
            return [self._setups[conn_id] for conn_id in conn_ids]


def _projects(reading: SetUpReading, now: datetime) -> set[str]:
    recent = (hour for at, hour in reading.hours.items() if now - at < timedelta(hours=2))
    return {project for hour in recent for figures in hour.spans.values() for project in figures.projects}


def _is_green(seen: Mapping[str, Any]) -> bool:
    return bool(seen["health"]["level"] == Level.OK)


def _links(event: Mapping[str, Any], config: DispatchConfig | None) -> dict[str, str]:
    """Return the pages of an event's object and of its job in Google Cloud's console, where there are any; its lane."""
    links = {"console": _console(event["url"]), "job": "", "job_id": "", "lane": str(Lane.WINDOWS)}
    try:
        name = TraceName.parse(event["name"])
    except ValueError:
        return links
    links["lane"] = str(lane_of(name.action))
    links["job_id"] = name.job_id
    project = name.project or (config.project_id if config else None)
    if project and not emulator(BIGQUERY):
        links["job"] = page_of_job(project, name.job_id, name.region)
    return links


def _console(url: str) -> str:
    return "" if emulator(STORAGE) else object_page(url)


def _text(at: datetime | None) -> str | None:
    return at.isoformat(timespec="milliseconds") if at else None
