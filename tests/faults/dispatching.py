"""A dispatcher in a process of its own, which ends itself at the request that a test says."""

import json
import logging
import os
import signal
import threading
import time

import requests


class Requests:
    """Counts the requests of this process, and kills or stops it before or after one of them."""

    def __init__(self, kill_at=None, after=False, by=signal.SIGKILL):
        self.count = 0
        self._kill_at, self._after, self._by = kill_at, after, by
        self._lock = threading.Lock()
        self._send = requests.Session.send

    def send(self, session, request, **more):
        with self._lock:
            self.count += 1
            mine = self.count == self._kill_at
        if mine and not self._after:
            os.kill(os.getpid(), self._by)
        response = self._send(session, request, **more)
        if mine and self._after:
            os.kill(os.getpid(), self._by)
        return response


def hurry(factor=0.02):
    """Pauses are about load, which nobody here has."""
    sleep = time.sleep
    time.sleep = lambda seconds: sleep(seconds * factor)


def dispatch(answers, log_file, url, document, kill_at=None, after=False, by=signal.SIGKILL, cycles=1):
    """Run cycles; sends the number of requests and each cycle's report, unless it is killed before."""
    os.environ["STORAGE_EMULATOR_HOST"] = os.environ["BIGQUERY_EMULATOR_HOST"] = url
    from google.auth.credentials import AnonymousCredentials
    from google.cloud.storage import Client

    from bqdispatch_provider.config import DispatchConfig
    from bqdispatch_provider.dispatcher import Dispatcher

    hurry()
    logging.basicConfig(filename=log_file, level=logging.INFO, force=True)
    counted = Requests(kill_at, after, by)
    requests.Session.send = lambda session, request, **more: counted.send(session, request, **more)
    client = Client(project="p", credentials=AnonymousCredentials(), client_options={"api_endpoint": url})
    reports = []
    with Dispatcher(DispatchConfig.from_dict(document), client, requests.Session()) as dispatcher:
        for _ in range(cycles):
            reports.append(dispatcher.cycle().to_dict())
    answers.send(json.dumps({"requests": counted.count, "reports": reports}))
    answers.close()
