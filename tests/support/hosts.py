"""Hosts of the tests' own: Linux network namespaces on switches, from which each can be unplugged.

Only root can make them. Without that, or without iproute2, the tests that need them are skipped,
unless ``POOL_REQUIRE_HOSTS=1`` says that there have to be some.

A host lasts as long as a process that reads what this one never writes. So the namespaces, and with
them all links and addresses, go with this process, whatever that dies of.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_NAMESPACES = ("net", "uts")
_PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)


def need_hosts() -> None:
    """Skip, or fail, the test where no host can be made."""
    # Not above: processes without tests move to hosts.
    import pytest

    missing = [name for name in ("ip", "unshare", "nsenter") if _program(name) is None]
    why = ""
    if missing:
        why = f"there is no {', no '.join(missing)}"
    elif os.geteuid() != 0 or not _may_make_hosts():
        why = "this user may not make hosts"
    if why and os.environ.get("POOL_REQUIRE_HOSTS") == "1":
        pytest.fail(f"{why}, and POOL_REQUIRE_HOSTS=1 says that there must be hosts")
    if why:
        pytest.skip(why)


@functools.cache
def _may_make_hosts() -> bool:
    """Whether root is one that may: in a container it often is not."""
    command = [_program("unshare") or "", *(f"--{each}" for each in _NAMESPACES), "--", "true"]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


class Host:
    """A host with a name, a loopback, and a link to each switch that it joins."""

    def __init__(self, name: str) -> None:
        need_hosts()
        self.name = name
        self._holder = subprocess.Popen(
            [_program("unshare") or "", *(f"--{each}" for each in _NAMESPACES), "--",
             "sh", "-c", 'hostname "$0" && ip link set lo up && echo made && exec cat', name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
            env={**os.environ, "PATH": _PATH},
        )  # fmt: skip
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "made\n", f"{name} was not made"

    @property
    def pid(self) -> int:
        """A process in the host."""
        return self._holder.pid

    @property
    def within(self) -> Sequence[str]:
        """What a program begins with that is to run in the host."""
        chosen = (f"--{each}" for each in _NAMESPACES)
        return (_program("nsenter") or "", f"--target={self.pid}", *chosen, "--")

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Have this thread, and the threads and processes that it starts meanwhile, reach the
        network as the host does."""
        with Path("/proc/thread-self/ns/net").open() as home:
            _set_namespace(self.pid, "net")
            try:
                yield
            finally:
                _check(_libc.setns(home.fileno(), 0))

    def remove(self) -> None:
        """Let it go; its namespace does once no other process is in it."""
        self._holder.communicate()


class Switch:
    """A network by itself, with the addresses ``subnet``.1 to ``subnet``.254.

    What is sent to or from a host that is unplugged vanishes, as if a cable were cut further on:
    its own link stays up, and nobody says that it is not reached.
    """

    def __init__(self, name: str, subnet: str) -> None:
        self._host = Host(name)
        self._subnet = subnet
        self._ports: dict[str, str] = {}
        self._ip("link", "add", "bridge", "type", "bridge")
        self._ip("link", "set", "bridge", "up")

    def join(self, host: Host) -> str:
        """Give a host a link and an address, which is returned."""
        number = len(self._ports) + 1
        port = self._ports[host.name] = f"port{number}"
        link, address = f"to-{self._host.name}", f"{self._subnet}.{number}"
        _run(
            _program("ip") or "", "link", "add", port, "netns", str(self._host.pid),
            "type", "veth", "peer", "name", link, "netns", str(host.pid),
        )  # fmt: skip
        self._ip("link", "set", port, "master", "bridge", "up")
        _run(*host.within, "ip", "address", "add", f"{address}/24", "dev", link)
        _run(*host.within, "ip", "link", "set", link, "up")
        return address

    def unplug(self, host: Host) -> None:
        self._ip("link", "set", self._ports[host.name], "nomaster")

    def plug_in(self, host: Host) -> None:
        self._ip("link", "set", self._ports[host.name], "master", "bridge")

    def remove(self) -> None:
        self._host.remove()

    def _ip(self, *arguments: str) -> None:
        _run(*self._host.within, "ip", *arguments)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def move_to(pid: int) -> None:
    """Have this process, which has one thread, be on the host of another one, with its network and
    its name, and end with the process that has started it."""
    for kind in _NAMESPACES:
        _set_namespace(pid, kind)
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))


def _set_namespace(pid: int, kind: str) -> None:
    with Path(f"/proc/{pid}/ns/{kind}").open() as namespace:
        _check(_libc.setns(namespace.fileno(), 0))


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _program(name: str) -> str | None:
    return shutil.which(name, path=_PATH)


def _run(*command: str) -> None:
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env={**os.environ, "PATH": _PATH}
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
