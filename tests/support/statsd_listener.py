"""A StatsD server on 127.0.0.1 that only listens."""

import select
import socket
import threading

from airflow_stats import statsd_environment


class StatsdListener:
    """Receive metrics as ``(name, value, kind)``, at once, as the buffer of the socket drops what does not fit."""

    def __init__(self):
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self._socket.bind(("127.0.0.1", 0))
        self.environment = statsd_environment(self._socket.getsockname()[1])
        self._lines, self._lock, self._closed = [], threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self):
        while not self._closed.is_set():
            select.select([self._socket], [], [], 0.1)
            with self._lock:
                self._receive()

    def _receive(self):
        while select.select([self._socket], [], [], 0)[0]:
            self._lines += self._socket.recv(65536).decode().splitlines()

    def ours(self):
        """Return the metrics of this provider that arrived since the last call."""
        with self._lock:
            self._receive()
            lines, self._lines = self._lines, []
        split = (line.replace("|", ":").split(":")[:3] for line in lines)
        return [(name, float(value), kind) for name, value, kind in split if name.startswith("airflow.bqdispatch.")]

    def close(self):
        self._closed.set()
        self._thread.join()
        self._socket.close()
