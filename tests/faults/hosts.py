"""Two hosts on one machine: network namespaces joined by a cable of their own, each with its own host name."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Host:
    """One of them."""

    space: str  # the network namespace
    name: str  # its host name
    address: str
    interface: str

    def started_by(self, own_folder: Path | None = None) -> list[str]:
        """Words that put a command on this host; ``own_folder`` is then another, empty one there."""
        mount = f'mount -t tmpfs none "{own_folder}"; ' if own_folder else ""
        unshare = ["unshare", "-u", *(["-m"] if own_folder else [])]
        shell = ["sh", "-c", f'hostname {self.name}; {mount}exec "$@"', "sh"]
        return ["ip", "netns", "exec", self.space, *unshare, *shell]

    def env(self) -> dict[str, str]:
        """What gloo must know here."""
        return {"GLOO_SOCKET_IFNAME": self.interface}

    def unplug(self) -> None:
        """Pull the cable."""
        ip("-n", self.space, "link", "set", self.interface, "down")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], capture_output=True, text=True, check=True)


@contextmanager
def two_hosts() -> Iterator[Sequence[Host]]:
    """Set up both; CalledProcessError where it is not permitted."""
    tag = f"{os.getpid() % 100_000}"
    hosts = [Host(f"mhs{tag}{end}", f"host{end}", f"10.77.0.{i + 1}", f"v{tag}{end}") for i, end in enumerate("ab")]
    made: list[Host] = []
    try:
        for host in hosts:
            ip("netns", "add", host.space)
            made.append(host)
        ends = [(host.interface, "netns", host.space) for host in hosts]
        ip("link", "add", *ends[0], "type", "veth", "peer", *ends[1])
        for host in hosts:
            ip("-n", host.space, "addr", "add", f"{host.address}/24", "dev", host.interface)
            for interface in (host.interface, "lo"):
                ip("-n", host.space, "link", "set", interface, "up")
        yield hosts
    finally:
        for host in made:
            ip("netns", "del", host.space)
