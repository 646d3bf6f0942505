"""Ports for servers that cannot be told to choose one."""

import random
import socket

_PORTS = range(20_000, 32_000)
"""Below those that the system gives to connections and to port 0: such a one may be taken by the time it is used."""


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """Return a port of 127.0.0.1 on which nobody listens.

    :param kind: of the socket; TCP by default.
    """
    while not is_free(port := random.choice(_PORTS), kind):
        pass
    return port


def is_free(port: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> bool:
    """Tell whether nobody listens on a port of 127.0.0.1.

    :param kind: of the socket; TCP by default.
    """
    with socket.socket(socket.AF_INET, kind) as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
