"""A port for a server of a test; imports next to nothing, for who starts as a script of its own."""

import socket


def free_port() -> int:
    """A port that nobody listens on, on any address of this machine."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
