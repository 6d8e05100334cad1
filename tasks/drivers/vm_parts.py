"""Everything that makes a VM besides its disks, fetched from its host into the folder of its image."""

import base64
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks.drivers import rsync
from tasks.drivers.host_shell import HostShell
from tasks.drivers.libvirt_host import Host, HostDomain
from tasks.errors import CommandFailed, GbsError, HypervisorError
from tasks.model.domain_xml import parse_domain
from tasks.model.manifest import VmParts
from tasks.model.names import slug
from tasks.model.ssh_target import SshTarget
from tasks.model.vm_parts import named_parts

DEFINITION, LIVE_DEFINITION, TPM_STATE = "domain.xml", "live.xml", "tpm.tar"
DEADLINE_S = 600
TPM_LIMIT_BYTES = 8 << 20
TPM_FOLDER = "/var/lib/libvirt/swtpm"
"""Where libvirt keeps the state of emulated TPMs, by UUID of the VM (src/qemu/qemu_tpm.c)."""
NVRAM_FOLDER = "/var/lib/libvirt/qemu/nvram"
"""Where libvirt keeps UEFI variables unless a definition says otherwise, as `<name>_VARS.fd`."""
# The exit status is tar's: a pipe would hide it, and the tar of nothing is a good one.
_ENCODED_TAR = """
exec 3>&1
exit "$({ { tar -C "$1" -cf - "$2"; echo $? >&4; } | head -c "$3" | base64 >&3; } 4>&1)"
"""
_USAGE = {1: "volume", 2: "ceph", 3: "iscsi", 4: "tls", 5: "vtpm"}
log = logging.getLogger(__name__)


def capture(host: Host, shell: HostShell, target: SshTarget, domain: HostDomain, folder: Path) -> VmParts:
    """Write the VM's definitions, UEFI variables, TPM state, kernel and initrd, networks and pools into `folder`.

    What a VM may lack without being another VM is a warning when it cannot be had. Secrets are named, never fetched.
    """
    return _Capture(host, shell, target, domain, folder).run()


class _Capture:
    def __init__(self, host: Host, shell: HostShell, target: SshTarget, domain: HostDomain, folder: Path) -> None:
        self.host, self.shell, self.target, self.domain, self.folder = host, shell, target, domain, folder
        self.warnings: list[str] = []

    def run(self) -> VmParts:
        """Fetch all of it."""
        live, stored = self.domain.xml(), self.domain.inactive_xml()
        active, autostart = self.domain.call("ask how it starts", _starts)
        self._write(DEFINITION, stored or live)
        if active:
            self._write(LIVE_DEFINITION, live)
        # The stored definition of a guest with firmware='efi' does not name its variables, the live one does (9.0).
        named = named_parts(live)
        sources = dict(named.files)
        if parse_domain(live).firmware == "efi":
            sources.setdefault("nvram", f"{NVRAM_FOLDER}/{self.domain.name}_VARS.fd")
        return VmParts(
            autostart=autostart,
            live_definition=LIVE_DEFINITION if active else None,
            files={role: file for role, path in sources.items() if (file := self._fetch(role, path))},
            sources=sources,
            tpm_state=self._tpm() if named.tpm else None,
            networks=self._definitions("network", named.networks, self._network),
            pools=self._definitions("pool", named.pools, self._pool),
            secrets=tuple(self._secret(*secret) for secret in named.secrets),
            warnings=tuple(self.warnings),
        )

    def _write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text, "utf-8", "surrogateescape")

    def _fetch(self, role: str, path: str) -> str | None:
        """A file of the host under its role's name; None when it is not there."""
        try:
            rsync.fetch_file(self.target, path, self.folder / role, deadline_s=DEADLINE_S)
        except CommandFailed as exc:
            (self.folder / role).unlink(missing_ok=True)
            self.warnings.append(f"its {role} {path} is not in the image: {exc.args[-1]}")
            return None
        return role

    def _tpm(self) -> str | None:
        argv = ["sh", "-c", _ENCODED_TAR, "sh", TPM_FOLDER, self.domain.uuid, str(TPM_LIMIT_BYTES)]
        done = self.shell.run(argv, deadline_s=DEADLINE_S, name="tar of the TPM's state", check=False)
        content = base64.b64decode(done.stdout)
        if done.status != 0 or len(content) >= TPM_LIMIT_BYTES:
            words = done.stderr.strip() or f"it has more than {TPM_LIMIT_BYTES} bytes"
            self.warnings.append(f"the state of its TPM is not in the image: {words}")
            return None
        (self.folder / TPM_STATE).write_bytes(content)
        return TPM_STATE

    def _definitions(self, kind: str, names: tuple[str, ...], read: Callable[[str], str]) -> dict[str, str]:
        files = {}
        for name in names:
            try:
                text = self.host.call(f"read the definition of {kind} {name} of", self.domain.name, lambda: read(name))  # noqa: B023 - called at once
            except HypervisorError as exc:
                self.warnings.append(f"the definition of {kind} {name} is not in the image: {exc.args[-1]}")
                continue
            files[name] = f"{kind}-{slug(name)}.xml"
            self._write(files[name], text)
        return files

    def _network(self, name: str) -> str:
        return str(self.host.connection.networkLookupByName(name).XMLDesc(0))

    def _pool(self, name: str) -> str:
        return str(self.host.connection.storagePoolLookupByName(name).XMLDesc(0))

    def _secret(self, attribute: str, value: str) -> str:
        """What an operator calls a secret: its usage, where libvirt knows it."""

        def look_up() -> Any:
            found = self.host.connection.secretLookupByUUIDString(value)
            return f"{_USAGE.get(found.usageType(), 'secret')} {found.usageID() or value}"

        if attribute != "uuid":
            return value
        try:
            return str(self.host.call("look up a secret of", self.domain.name, look_up))
        except GbsError as exc:
            log.warning("VM %s: secret %s: %s", self.domain.name, value, exc)
            return value


def _starts(handle: Any) -> tuple[bool, bool]:
    return bool(handle.isActive()), bool(handle.autostart())
