"""A Prometheus that scrapes a statsd_exporter to which our metrics are sent: all three real, on 127.0.0.1."""

import os
import re
import shutil
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import requests
import yaml
from airflow_stats import statsd_environment
from waiting import wait_until

from demo.ports import free_port

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "deploy/grafana"
BUILT = ROOT / ".work/bin/statsd_exporter"
"""The place where `make statsd-exporter` builds it; the tests only use it where it is."""

END_AFTER_S = 1800
"""However a test ends, nothing that it has started lives longer."""


class Prometheus:
    """A Prometheus that answers queries, and the exporter that it scrapes."""

    def __init__(self, url, exporter_url):
        self._url, self._exporter_url = url, exporter_url
        self._http = requests.Session()
        self._http.trust_env = False

    def get(self, path, **parameters):
        """Return the data of an answer, or the message of an error."""
        answer = self._http.get(f"{self._url}/api/v1/{path}", params=parameters, timeout=30).json()
        return answer["data"] if answer["status"] == "success" else answer["error"]

    def query(self, expression):
        """Return what a query finds, as labels and value; a text is an error."""
        data = self.get("query", query=expression)
        return data if isinstance(data, str) else [(each["metric"], float(each["value"][1])) for each in data["result"]]

    def exported(self):
        """Return the page of the exporter."""
        return self._http.get(f"{self._exporter_url}/metrics", timeout=30).text

    def answers(self):
        """Return whether both answer."""
        try:
            return self.get("status/buildinfo") and self.exported()
        except requests.RequestException:
            return False


def path_of(program, package):
    """Return a program's path; skip the test where there is none."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not here: Debian's package {package} has it")
    return path


@pytest.fixture(scope="session")
def promtool():
    """Runs promtool; it has to succeed."""
    return _runner(path_of("promtool", "prometheus"))


@pytest.fixture(scope="session")
def statsd_exporter():
    """The exporter's path: named by ``STATSD_EXPORTER``, built by `make statsd-exporter`, or on the PATH."""
    path = os.environ.get("STATSD_EXPORTER") or (str(BUILT) if BUILT.exists() else shutil.which("statsd_exporter"))
    if path is None:
        pytest.skip("statsd_exporter is not here: `make statsd-exporter` builds it, or name one by STATSD_EXPORTER")
    return path


@pytest.fixture(scope="session")
def documented_config():
    """The prometheus.yml of docs/grafana.md."""
    (text,) = re.findall(r"```yaml\n( +global:.*?)```", (ROOT / "docs/grafana.md").read_text(), re.DOTALL)
    return yaml.safe_load(text)


@pytest.fixture(scope="module")
def prometheus(statsd_exporter, documented_config, tmp_path_factory):
    """A Prometheus that has scraped every metric of ours more than twice, and goes on."""
    binary = path_of("prometheus", "prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    statsd, exported, served = free_port(socket.SOCK_DGRAM), free_port(), free_port()
    config = folder / "prometheus.yml"
    config.write_text(yaml.safe_dump(at_test_speed(documented_config, exported)))
    export = [statsd_exporter, f"--statsd.listen-udp=127.0.0.1:{statsd}", "--statsd.listen-tcp="]
    export += [f"--web.listen-address=127.0.0.1:{exported}", f"--statsd.mapping-config={GRAFANA}/statsd_mapping.yaml"]
    scrape = [binary, f"--config.file={config}", f"--web.listen-address=127.0.0.1:{served}"]
    scrape += [f"--storage.tsdb.path={folder}/data", "--log.level=warn"]
    report = [sys.executable, Path(__file__).parent / "reporting.py"]
    environment = {
        **os.environ,
        **statsd_environment(statsd),
        "AIRFLOW_HOME": str(folder / "airflow"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests/support")]),
    }
    prometheus = Prometheus(f"http://127.0.0.1:{served}", f"http://127.0.0.1:{exported}")
    with ExitStack() as stack:
        programs = [stack.enter_context(running(each, folder)) for each in (export, scrape)]
        wait_for(prometheus.answers, "Prometheus and the exporter answer", *programs)
        programs.append(stack.enter_context(running(report, folder, environment)))
        # A report ends with this one, and a rate needs two scrapes with a report between them.
        reported = "changes(bqdispatch_performance_written[1m]) >= 2"
        wait_for(lambda: prometheus.query(reported), "all metrics are scraped", *programs)
        yield prometheus


def at_test_speed(config, port):
    """Return a configuration that scrapes and evaluates each second what is exported here."""
    (scrape,) = config["scrape_configs"]
    return {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(GRAFANA / file) for file in config["rule_files"]],
        "scrape_configs": [{**scrape, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}],
    }


@contextmanager
def running(command, folder, environment=None):
    """Run a program while the context lasts; what it prints goes into a file of the folder."""
    with (folder / f"{Path(command[0]).name}.log").open("wb") as log:
        command = ["timeout", str(END_AFTER_S), *command]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    process.log = Path(log.name)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def wait_for(is_so, what, *programs):
    """Wait until a condition holds, as long as all programs live that it needs."""

    def holds():
        for program in programs:
            assert program.poll() is None, program.log.read_text()
        return is_so()

    wait_until(holds, what)


def _runner(path):
    def run(*arguments, **more):
        done = subprocess.run([path, *arguments], capture_output=True, text=True, check=False, **more)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run
