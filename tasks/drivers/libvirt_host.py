"""A KVM host through libvirt: every call with a deadline, every error one of ours, a dead host noticed.

Remote hosts are reached by qemu+ssh through an ssh of our own making, so that host keys are as strict as elsewhere.
"""

import contextlib
import os
import shlex
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import libvirt

from tasks.drivers.libvirt_errors import no_connection, translate
from tasks.errors import ConfigError, UnknownName, Unreachable
from tasks.model.ssh_target import SshTarget, ssh_argv

CONNECT_DEADLINE_S = 40
CALL_DEADLINE_S = 60  # libvirt itself gives up after 30 s of waiting for a domain's state change lock
KEEPALIVE_INTERVAL_S = 5
KEEPALIVE_COUNT = 3
LOCAL_URI = "qemu:///system"
Answer = TypeVar("Answer")
_loop_lock = threading.Lock()
_loop: list[threading.Thread] = []


class Host:
    """An open connection to the libvirt of one KVM host; `name` is what operators call the host."""

    def __init__(self, name: str, connection: Any, local_uri: str = LOCAL_URI) -> None:
        self.name = name
        self.connection = connection
        self.local_uri = local_uri
        """The URI by which an operator reaches the same libvirt on the host itself."""

    def call(
        self, action: str, vm: str, function: Callable[[], Answer], *, deadline_s: float = CALL_DEADLINE_S
    ) -> Answer:
        """What `function` (calls of libvirt) returns; raises our error for libvirt's, Unreachable past the deadline."""
        try:
            return _within(deadline_s, function)
        except libvirt.libvirtError as exc:
            raise translate(exc, self.name, vm, action) from exc
        except TimeoutError as exc:
            raise Unreachable(self.name, f"libvirt did not answer within {deadline_s:.0f} s: {action} {vm}") from exc

    def versions(self) -> dict[str, str]:
        """The versions of the host's libvirt and of its hypervisor, by name."""

        def ask() -> dict[str, int]:
            return {"libvirt": self.connection.getLibVersion(), "qemu": self.connection.getVersion()}

        # libvirt counts 1,000,000 * major + 1,000 * minor + release.
        found = self.call("ask for versions", "", ask)
        return {name: f"{n // 1000000}.{n // 1000 % 1000}.{n % 1000}" for name, n in found.items()}

    def domain_names(self) -> list[str]:
        """The names of all VMs that the host knows, running or not."""
        names = self.call("list", "", lambda: [domain.name() for domain in self.connection.listAllDomains(0)])
        return sorted(names)

    def domain(self, name_or_uuid: str) -> "HostDomain":
        """The VM of that name or UUID; UnknownName when there is none."""
        found = self.find(name_or_uuid)
        if found is None:
            raise UnknownName("VM", name_or_uuid, self.domain_names())
        return found

    def find(self, name_or_uuid: str) -> "HostDomain | None":
        """The VM of that name or UUID, or None. A name goes before a UUID that looks the same."""

        def look_up() -> Any:
            for lookup in (self.connection.lookupByName, self.connection.lookupByUUIDString):
                try:
                    return lookup(name_or_uuid)
                except libvirt.libvirtError as exc:
                    if exc.get_error_code() not in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_INVALID_ARG):
                        raise
            return None

        handle = self.call("look up", name_or_uuid, look_up)
        return HostDomain(self, handle) if handle is not None else None

    def find_uuid(self, uuid: str) -> "HostDomain | None":
        """The VM of that UUID, or None; a VM that is merely named like it is another."""

        def look_up() -> Any:
            try:
                return self.connection.lookupByUUIDString(uuid)
            except libvirt.libvirtError as exc:
                if exc.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                    return None
                raise

        handle = self.call("look up", uuid, look_up)
        return HostDomain(self, handle) if handle is not None else None

    def domains(self) -> "list[HostDomain]":
        """All VMs that the host knows, running or not."""
        handles = self.call("list", "", lambda: self.connection.listAllDomains(0))
        return [HostDomain(self, handle) for handle in handles]

    def define(self, xml: str, vm: str) -> None:
        """Define or redefine a VM; HypervisorError when libvirt refuses the definition."""
        self.call("define", vm, lambda: self.connection.defineXML(xml))


class HostDomain:
    """One VM of a host, by the handle that libvirt gave us."""

    def __init__(self, host: Host, handle: Any) -> None:
        self.host = host
        self.handle = handle
        self.name: str = handle.name()
        self.uuid: str = handle.UUIDString()

    def call(self, action: str, function: Callable[[Any], Answer], *, deadline_s: float = CALL_DEADLINE_S) -> Answer:
        """What `function` returns for libvirt's handle of this VM, as `Host.call`."""
        return self.host.call(action, self.name, lambda: function(self.handle), deadline_s=deadline_s)

    def state(self) -> tuple[int, int]:
        """libvirt's state of the VM and the reason for it (VIR_DOMAIN_*)."""
        state, reason = self.call("ask for the state", lambda handle: handle.state())
        return int(state), int(reason)

    def xml(self) -> str:
        """The definition as it runs, or the stored one when it is shut off. No secrets in it."""
        return str(self.call("read the definition", lambda handle: handle.XMLDesc(0)))

    def inactive_xml(self, *, secrets: bool = False) -> str | None:
        """The definition of the next start, or None for a VM without one (a transient one)."""
        flags = libvirt.VIR_DOMAIN_XML_INACTIVE | (libvirt.VIR_DOMAIN_XML_SECURE if secrets else 0)

        def read(handle: Any) -> str | None:
            return str(handle.XMLDesc(flags)) if handle.isPersistent() else None

        return self.call("read the definition", read)


def _within(deadline_s: float, function: Callable[[], Answer]) -> Answer:
    """Run a call that cannot be interrupted in a thread that we stop waiting for; TimeoutError past the deadline."""
    answers: list[Answer] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(function())
        except BaseException as exc:  # noqa: BLE001 - handed to the thread that waits
            errors.append(exc)

    thread = threading.Thread(target=run, name="libvirt call", daemon=True)
    thread.start()
    thread.join(deadline_s)
    if thread.is_alive():
        raise TimeoutError
    if errors:
        raise errors[0]
    return answers[0]


@contextmanager
def connect(target: SshTarget | None, uri: str = LOCAL_URI) -> Iterator[Host]:
    """An open connection to a KVM host, closed at the end: `uri` on this machine, or the same one over ssh.

    Raises AccessDenied for a wrong host key or a refused login, Unreachable when nothing answers.
    """
    _start_event_loop()
    name = target.name if target else "this machine"
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gbs-libvirt-")))
        where = uri if target is None else remote_uri(target, uri, _ssh_wrapper(target, folder))
        host = Host(name, None, uri)
        stack.callback(_end_ssh, folder)
        try:
            host.connection = host.call("connect", "", lambda: libvirt.open(where), deadline_s=CONNECT_DEADLINE_S)
        except Unreachable as exc:
            # libvirt passes on what ssh said only if it looks in time; the wrapper keeps it.
            words = (folder / "stderr").read_text("utf-8", "replace").strip() if (folder / "stderr").exists() else ""
            raise no_connection(name, words or str(exc.args[1])) from exc
        stack.callback(_close, host)
        host.call(
            "watch the connection",
            "",
            lambda: host.connection.setKeepAlive(KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT),
        )
        yield host


def remote_uri(target: SshTarget, uri: str, ssh_command: Path) -> str:
    """The URI of the libvirt that `uri` names on the host itself, reached through `ssh_command`."""
    parts = urlsplit(uri)
    if "+" in parts.scheme or parts.netloc or not parts.scheme:
        raise ConfigError("libvirt URI is not one of a host's own", uri, f"use one such as {LOCAL_URI}")
    address = f"[{target.address}]" if ":" in target.address else target.address
    query = f"command={quote(str(ssh_command), safe='/')}&no_tty=1"
    return f"{parts.scheme}+ssh://{quote(target.user)}@{address}:{target.port}{parts.path}?{query}"


def _ssh_wrapper(target: SshTarget, folder: Path) -> Path:
    """An executable that libvirt runs as its ssh: exactly our options, which win as ssh takes the first of each."""
    wrapper = folder / "ssh"
    pid, stderr = (shlex.quote(str(folder / name)) for name in ("pid", "stderr"))
    script = f'#!/bin/sh\necho $$ >{pid}\nexec {shlex.join(ssh_argv(target))} "$@" 2>{stderr}\n'
    wrapper.write_text(script)
    wrapper.chmod(0o700)
    return wrapper


def _end_ssh(folder: Path) -> None:
    """End an ssh that a connection left: libvirt waits for ever for one that hangs."""
    with contextlib.suppress(OSError, ValueError):
        pid = int((folder / "pid").read_text())
        status = Path(f"/proc/{pid}/status").read_text()
        if status.startswith("Name:\tssh\n") and f"\nPPid:\t{os.getpid()}\n" in status:
            os.kill(pid, signal.SIGTERM)


def _close(host: Host) -> None:
    with contextlib.suppress(libvirt.libvirtError, TimeoutError):
        _within(10, host.connection.close)


def _start_event_loop() -> None:
    """Run libvirt's event loop, which keepalive needs; it must be there before the first connection."""
    with _loop_lock:
        if _loop:
            return
        libvirt.registerErrorHandler(lambda context, error: None, None)
        libvirt.virEventRegisterDefaultImpl()

        def run() -> None:
            while True:
                libvirt.virEventRunDefaultImpl()

        _loop.append(threading.Thread(target=run, name="libvirt events", daemon=True))
        _loop[0].start()
