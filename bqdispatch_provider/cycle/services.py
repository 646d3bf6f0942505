"""The services that the steps of a cycle share, made for one configuration.

Here belongs how they are put together. A changed configuration gets new ones.
"""

from __future__ import annotations

import uuid
from concurrent.futures import Executor

from google.cloud.storage import Client

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.core.limits import is_limited
from bqdispatch_provider.core.report import Report
from bqdispatch_provider.cycle.recording import Recorder
from bqdispatch_provider.cycle.task_folder import TaskFolder
from bqdispatch_provider.delivery.copier import Copier
from bqdispatch_provider.delivery.evidence import Evidence
from bqdispatch_provider.delivery.firer import WindowFirer
from bqdispatch_provider.delivery.intents import Intents
from bqdispatch_provider.delivery.mover import Mover
from bqdispatch_provider.delivery.open_firings import OpenFirings
from bqdispatch_provider.delivery.own_intents import OwnIntents
from bqdispatch_provider.gcp.jobs import JobBoard
from bqdispatch_provider.gcp.permissions import missing_permissions


class Services:
    """The task folder of one configuration, and everything that works on it.

    :param config: names the task folder.
    :param client: a ``google.cloud.storage.Client``.
    :param board: board on which jobs are looked up.
    :param threads: threads that dispatch events.
    :param readers: threads that read objects.
    :param logged_errors: errors that are not logged again.
    :raises ConfigError: when neither the configuration nor the client names a project.
    """

    def __init__(
        self,
        config: DispatchConfig,
        client: Client,
        *,
        board: JobBoard,
        threads: Executor,
        readers: Executor,
        logged_errors: set[str],
    ) -> None:
        self.owner = uuid.uuid4().hex
        self.folder = TaskFolder(config, client, self.owner)
        self.config, self.store, self.ledger = self.folder.config, self.folder.store, self.folder.ledger
        self.board = board
        self.threads = threads
        self.is_limited = is_limited(self.config)
        copier = Copier(self.store, self.config)
        self.mover = Mover(copier, threads)
        self.firer = WindowFirer(copier, self.mover.quarantine_in_doubt, self.owner)
        self.own_intents = OwnIntents(self.store, self.owner, threads, limited=self.is_limited)
        self.intents = Intents(self.store, self.own_intents, threads)
        self.evidence = Evidence(self.store, board, self.ledger, self.config, readers)
        self.open_firings = OpenFirings(board, self.evidence)
        self._has_permissions = False
        self._logged_errors = logged_errors

    def recorder(self, report: Report | None = None) -> Recorder:
        """Return a recorder for a report; by default for a new report of one cycle."""
        return Recorder(self.folder, Report(cycles=1) if report is None else report, self._logged_errors)

    def missing_permissions(self) -> list[str]:
        """Return which permissions the account lacks, in sentences. Once none is missing, it is not asked again."""
        missing = [] if self._has_permissions else missing_permissions(self.store)
        self._has_permissions = not missing
        return missing
