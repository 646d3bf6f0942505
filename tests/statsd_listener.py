"""A StatsD server that only listens, on a port of 127.0.0.1."""

import select
import socket


class StatsdListener:
    """Keeps what arrives as ``(name, value, kind)``."""

    def __init__(self):
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self._socket.bind(("127.0.0.1", 0))
        self.environment = {
            "AIRFLOW__METRICS__STATSD_ON": "True",
            "AIRFLOW__METRICS__STATSD_HOST": "127.0.0.1",
            "AIRFLOW__METRICS__STATSD_PORT": str(self._socket.getsockname()[1]),
        }

    def ours(self):
        """What has arrived since the last time, of this provider."""
        lines = []
        while select.select([self._socket], [], [], 0)[0]:
            lines += self._socket.recv(65536).decode().splitlines()
        split = (line.replace("|", ":").split(":")[:3] for line in lines)
        return [(name, float(value), kind) for name, value, kind in split if name.startswith("airflow.bqdispatch.")]

    def close(self):
        self._socket.close()
