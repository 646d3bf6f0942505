"""docker-compose.yaml, started as a project of its own by the docker command, with ports that nobody has."""

import json
import os
import re
import subprocess
import time
import uuid
from pathlib import Path
from urllib.parse import quote

import requests

from demo.ports import free_port

ROOT = Path(__file__).parents[2]
OF_THE_FILE = ("AIRFLOW", "BQDISPATCH", "COMPOSE", "FAKE_GCS", "GOOGLE", "POSTGRES_VERSION", "REDIS_VERSION")
_PATIENCE_S = 300


class Stack:
    """One project; nothing of it is left when the context ends.

    :param profile: the profile to run; none by default.
    """

    def __init__(self, profile=None):
        self.name = f"bqdispatch-test-{uuid.uuid4().hex[:8]}"
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        self.cloud_url = f"http://127.0.0.1:{(cloud_port := free_port())}"
        # Neither settings of this shell nor those of an .env file.
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(OF_THE_FILE)},
            "BQDISPATCH_CLOUD_PORT": str(cloud_port),
            "BQDISPATCH_PORT": str(port),
            "COMPOSE_ENV_FILES": os.devnull,
            "COMPOSE_PROJECT_NAME": self.name,
        }
        self._profile = ["--profile", profile] if profile else []
        self._session = requests.Session()
        self._session.trust_env = False
        self.commands = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._call("docker", "compose", "--profile", "*", "down", "--volumes", check=False)

    def compose(self, *arguments, check=True):
        """Run ``docker compose`` and give what it printed."""
        command = ["docker", "compose", *self._profile, *arguments]
        self.commands.append(" ".join(command))
        return self._call(*command, check=check)

    def up(self):
        """Start it, wait until it is healthy, and log in."""
        try:
            self.compose("up", "--detach", "--wait")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.compose('logs', '--tail', '20')}") from None
        password = json.loads(self.compose("exec", "api-server", "cat", "/opt/bqdispatch/logins/logins.json"))["admin"]
        answer = self._session.post(f"{self.url}/auth/token", json={"username": "admin", "password": password})
        answer.raise_for_status()
        self._session.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"

    def commands_of_the_readme(self):
        """Return the commands of docs/compose.md with this profile."""
        page = (ROOT / "docs" / "compose.md").read_text()
        lines = [line.partition("#")[0] for line in page.splitlines() if line.startswith("$ ")]
        with_profiles = [line.removeprefix("$ ").strip() for line in lines if "--profile" in line]
        if self._profile:
            return [line for line in with_profiles if f" {' '.join(self._profile)} " in line]
        return [line for line in (each.removeprefix("$ ").strip() for each in lines) if line not in with_profiles]

    def services(self):
        """Every container that Compose knows of, running or not."""
        return [json.loads(line) for line in self.compose("ps", "--all", "--format", "json").splitlines()]

    def left(self):
        """What Docker still has of the project."""
        label = f"label=com.docker.compose.project={self.name}"
        listed = (("ps", "--all"), ("volume", "ls"), ("network", "ls"))
        return "".join(self._call("docker", *what, "--quiet", "--filter", label) for what in listed).split()

    def get(self, path, **query):
        """Ask Airflow's REST API; ``None`` while it cannot answer, as when its database is away."""
        try:
            answer = self._session.get(f"{self.url}/api/v2/{path}", params=query, timeout=30)
        except requests.ConnectionError:
            return None
        if answer.status_code >= 500:
            return None
        answer.raise_for_status()
        return answer.json()

    def runs(self, state):
        """The DAG's runs in a state, newest first."""
        listed = self.get("dags/bqdispatch/dagRuns", state=state, order_by="-run_after", limit=100) or {"dag_runs": []}
        return listed["dag_runs"]

    def tasks(self, run):
        """The task instances of a run, by task."""
        listed = self.get(f"dags/bqdispatch/dagRuns/{quote(run['dag_run_id'])}/taskInstances")
        return {task["task_id"]: task for task in (listed or {"task_instances": []})["task_instances"]}

    def wait_for(self, what, condition):
        """Wait until a condition gives something, and give that."""
        until = time.monotonic() + _PATIENCE_S
        while not (found := condition()):
            assert time.monotonic() < until, f"waited in vain for {what}\n{self.compose('logs', '--tail', '20')}"
            time.sleep(0.5)
        return found

    def wait_for_runs(self, number):
        """Wait until so many more runs have gone well."""
        known = {run["dag_run_id"] for run in self.runs("success")}
        self.wait_for(
            f"{number} more good runs",
            lambda: len({run["dag_run_id"] for run in self.runs("success")} - known) >= number,
        )

    def fed(self):
        """How many events BqTail's log tells of."""
        found = re.findall(r"of ([\d,]+) files finished", self.compose("logs", "bqtail"))
        return max((int(each.replace(",", "")) for each in found), default=0)

    def end_the_feed(self):
        """End BqTail's feed; gives its account once all events are through, or BqTail has given up."""
        self.compose("kill", "--signal", "SIGUSR1", "bqtail")
        self.wait_for("BqTail's end", lambda: {s["Service"]: s for s in self.services()}["bqtail"]["State"] == "exited")
        lines = [line.partition("| ")[2] for line in self.compose("logs", "bqtail").splitlines()]
        return json.loads("\n".join(lines[lines.index("{") :]))

    def _call(self, *command, check=True):
        ended = subprocess.run(
            command, cwd=ROOT, env=self._environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        assert not check or ended.returncode == 0, f"{' '.join(command)}: {ended.stderr[-4000:]}"
        return ended.stdout if check else ended.stdout + ended.stderr
