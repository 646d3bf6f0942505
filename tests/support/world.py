"""A task folder in a stand-in Google Cloud, and methods to fill it with windows, traces and jobs."""

import json

import requests
from google.auth.credentials import AnonymousCredentials
from google.cloud.storage import Client

from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.core.targets import CLAIMED, OWNER, LedgerName, ledger_entry_name
from bqdispatch_provider.dispatcher import Dispatcher
from bqdispatch_provider.names import TableName, TraceName, WindowName

TASKS, TRIGGER, JOURNAL = "ops", "p_bqtail", "journal"
FOLDER = "BqDispatch/Tasks/"
SOFT_DELETE = {"softDeletePolicy": {"retentionDurationSeconds": "604800"}}
VERSIONING = {"versioning": {"enabled": True}}
LONG_AGO = 100 * 24 * 3600


class World:
    """A task folder, its trigger bucket and its jobs.

    :param keeping: ``softDeletePolicy`` or ``versioning`` of the trigger bucket; a week of soft delete by default, as
        for new buckets. The policy is older than all objects of a test.
    """

    def __init__(self, url, control, keeping=SOFT_DELETE):
        self.url = url
        self.control = control
        self.client = Client(project="p", credentials=AnonymousCredentials(), client_options={"api_endpoint": url})
        self.session = requests.Session()
        control.advance(-LONG_AGO)
        for bucket, settings in ((TASKS, {}), (TRIGGER, keeping), (JOURNAL, {})):
            made = self.session.post(f"{url}/storage/v1/b?project=p", json={"name": bucket, **settings})
            made.raise_for_status()
        control.advance(LONG_AGO)
        self._event = 1000

    @staticmethod
    def document(**more):
        return {
            "ProjectID": "p",
            "AsyncTaskURL": f"gs://{TASKS}/{FOLDER}",
            "JournalURL": f"gs://{JOURNAL}/journal",
            "ErrorURL": f"gs://{JOURNAL}/errors",
            **more,
        }

    @staticmethod
    def config(**more):
        return DispatchConfig.from_dict(World.document(**more))

    def dispatcher(self, go_on=lambda: True, **more):
        return Dispatcher(self.config(**more), self.client, self.session, go_on=go_on)

    def cycle(self, **more):
        with self.dispatcher(**more) as dispatcher:
            return dispatcher.cycle()

    def put(self, *names, age=60.0, content="{}", metadata=None):
        """Create objects in the task folder, ``age`` seconds ago. Return their generations."""
        created = self.control.now() - age
        return self.control.seed_objects(
            TASKS,
            [
                {
                    "name": FOLDER + n,
                    "content": content,
                    "timeCreated": created,
                    **({"metadata": metadata} if metadata else {}),
                }
                for n in names
            ],
        )

    def trace(self, action="load", **more):
        """Create a trace and its job. Return the name of the trace.

        :param more: further arguments of :meth:`traces`.
        """
        return self.traces(1, action, **more)[0]

    def traces(
        self,
        number,
        action="load",
        state="DONE",
        project="p",
        region="US",
        dest="ds.t",
        age=60.0,
        content="{}",
        root=False,
        writes=None,
    ):
        """Create traces and their jobs. Return the names of the traces.

        :param state: state of the jobs; ``None``: create no jobs.
        :param writes: table that the job writes, with ``{event}`` for the event's ID; the destination by default.
        """
        names = []
        for _ in range(number):
            self._event += 1
            names.append(
                TraceName(None if root else project, None if root else region, dest, str(self._event), 1, action)
            )
        self.put(*(name.name for name in names), age=age, content=content)
        if state:
            tables = {name.job_id: (writes or dest).replace("{event}", name.event_id) for name in names}
            self.jobs(tables, state, action, project, region or "US", age=age, writes=tables.get)
        return [name.name for name in names]

    def jobs(self, ids, state="DONE", action="load", project="p", location="US", age=60.0, error=None, writes=None):
        """Create jobs; ``writes`` returns the destination table of each."""
        schedule = {
            "DONE": {},
            "RUNNING": {"runningMs": 10**9},
            "PENDING": {"pendingMs": 10**9},
        }[state]
        kind = {"reload": "load", "export": "extract"}.get(action, action)
        created = self.control.now() - age
        self.control.seed_jobs(
            {"project": project, "location": location, "jobId": job, "type": kind, "creationTime": created}
            | schedule
            | ({"error": error} if error else {})
            | (self._destination(writes(job)) if writes and kind != "extract" else {})
            for job in ids
        )

    @staticmethod
    def _destination(table):
        try:
            name = TableName.parse(table)
        except ValueError:
            return {}
        table = table.rpartition(".")[2]
        return {"destinationTable": {"projectId": name.project or "p", "datasetId": name.dataset, "tableId": table}}

    def window(self, dest="ds.t", due=60.0, age=None, content='{"EventID": 1}', hash_="77"):
        """Create a window that ended ``due`` seconds ago. Return its name."""
        from datetime import UTC, datetime

        end = datetime.fromtimestamp(int(self.control.now() - due), UTC)
        name = WindowName(dest, hash_, end).name
        self.put(name, age=max(due + 30.0, 10.0) if age is None else age, content=content)
        return name

    def performance(self, age=0.0, content="{}"):
        """Create the ``performance.json`` of a dispatcher that looked ``age`` seconds ago."""
        created = self.control.now() - age
        document = {"name": "journal/performance.json", "content": content, "timeCreated": created}
        self.control.seed_objects(JOURNAL, [document])

    def claim(self, name, ago):
        """Create the ledger entry of a dispatcher that claimed a window and disappeared."""
        blob = self.blob(name)
        self.put(
            ledger_entry_name(name, int(blob.generation), "claim", self.config().async_task_url),
            age=ago,
            content=blob.download_as_bytes().decode(),
            metadata={OWNER: "gone", CLAIMED: str(self.control.now() - ago)},
        )

    def names(self, bucket=TASKS, prefix=None):
        """List a bucket; of the task folder leave out the ledger, open windows, and what is completed."""
        listed = FOLDER if prefix is None and bucket == TASKS else prefix or ""
        found = {blob.name.removeprefix(FOLDER) for blob in self.client.list_blobs(bucket, prefix=listed)}
        if prefix is None and bucket == TASKS:
            done = {name for name in found if name.endswith(".done")}
            found -= done | {name.removesuffix(".done") for name in done}
            found = {name for name in found if not name.startswith("~") and not name.endswith("-windows.json")}
        return sorted(found)

    def intents(self):
        """List all intents, also completed ones."""
        return [name.removeprefix(FOLDER) for name in self.names(TASKS, f"{FOLDER}intents/")]

    def ledger(self, window, generation=None):
        """Return the ledger entries of a window by kind (claim, fired, gone-…), of one generation or all."""
        found = {}
        for blob in self.client.list_blobs(TASKS, prefix=f"{FOLDER}~ledger/"):
            entry = LedgerName.parse(blob.name.removeprefix(FOLDER))
            if entry.window == window and generation in (None, entry.generation):
                found[entry.what] = blob
        return found

    def deleted(self, bucket=TRIGGER):
        """List the deleted objects of a bucket, one entry for each deletion. Older clients have no method for it."""
        asked = {"softDeleted": "true", "fields": "items(name),nextPageToken"}
        names = []
        while True:
            page = self.session.get(f"{self.url}/storage/v1/b/{bucket}/o", params=asked).json()
            names += [item["name"] for item in page.get("items", ())]
            if "nextPageToken" not in page:
                return names
            asked["pageToken"] = page["nextPageToken"]

    def blob(self, name, bucket=TASKS):
        return self.client.bucket(bucket).get_blob(FOLDER + name if bucket == TASKS else name)

    def document_at(self, url):
        """Return the JSON document at a URL."""
        bucket, _, name = url.removeprefix("gs://").partition("/")
        return json.loads(self.client.bucket(bucket).blob(name).download_as_bytes())

    def delete(self, name, bucket=TASKS):
        self.control.advance(1)  # a name is changed once a second
        self.client.bucket(bucket).delete_blob(FOLDER + name if bucket == TASKS else name)

    def consume(self):
        """Delete all delivered objects, as BqTail does; until then they count for limits. Return their names."""
        delivered = self.names(TRIGGER)
        self.control.advance(1)  # a name is changed once a second
        for name in delivered:
            self.client.bucket(TRIGGER).delete_blob(name)
        return delivered

    def url_of(self, name):
        return f"gs://{TASKS}/{FOLDER}{name}"
