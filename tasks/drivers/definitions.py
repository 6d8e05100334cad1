"""VMs as the backup data of the KVM hosts knows them: found with every host dead."""

import logging
from collections.abc import Mapping
from pathlib import Path

from tasks.drivers.digest import parse_listing_line, sha256_file
from tasks.drivers.store import Store
from tasks.errors import Ambiguous, ConfigError, IntegrityError, NothingToRecover
from tasks.model.definition import Definition
from tasks.model.domain_recovery import is_isolated_copy
from tasks.model.domain_xml import parse_domain
from tasks.model.manifest import LISTING, NightManifest

log = logging.getLogger(__name__)


def find(store: Store, hosts: Mapping[str, str], vm: str) -> Definition:
    """The newest verified definition of the VM with that name or UUID; what a recovery isolated is a copy of it.

    `hosts` maps each KVM host to the folder of its definitions on it. Raises NothingToRecover when no host's backup
    data has the VM, Ambiguous when two different VMs answer to the name, IntegrityError when its file is damaged.
    """
    found = [definition for host, folder in hosts.items() for definition in _definitions(store, host, folder, vm)]
    if not found:
        searched = ", ".join(f"{host} ({_night(store, host)})" for host in hosts) or "no KVM host"
        raise NothingToRecover(f"VM {vm}", f"its definition is in the backup data of none of: {searched}")
    if len({definition.domain.uuid for definition in found}) > 1:
        candidates = [f"{item.domain.uuid} ({item.domain.name} on {item.kvm_host})" for item in found]
        raise Ambiguous(vm, candidates)
    return max(found, key=lambda definition: (definition.night, definition.file.stat().st_mtime))


def _night(store: Store, host: str) -> str:
    night = store.night_of(host)
    return f"night {night.id}" if night else "never backed up"


def _definitions(store: Store, host: str, folder: str, vm: str) -> list[Definition]:
    night, root = store.night_of(host), store.overnight(host)
    if night is None:
        return []
    found = []
    for file in sorted((root / "data" / folder.lstrip("/")).glob("*.xml")):
        if file.is_symlink():
            continue
        xml = file.read_text("utf-8", "surrogateescape")
        try:
            domain = parse_domain(xml)
        except ConfigError as exc:
            # It may be something else's XML, or the very VM's, damaged: the search goes on, and says so.
            log.warning("%s is no VM definition that can be read: %s", file, exc)
            continue
        if vm in (domain.name, domain.uuid):
            if is_isolated_copy(xml):
                log.info("%s is an isolated copy of VM %s, not the VM", file, vm)
                continue
            _verify(root, file, night)
            found.append(Definition(host, night.id, file, xml, domain))
    return found


def _verify(root: Path, file: Path, night: NightManifest) -> None:
    if sha256_file(root / LISTING) != night.listing_sha256:
        raise IntegrityError(str(root / LISTING), night.listing_sha256, "another sha256")
    name = str(file.relative_to(root / "data")).encode("utf-8", "surrogateescape")
    with (root / LISTING).open("rb") as lines:
        expected = next((sha for sha, path in map(parse_listing_line, lines) if path == name), "a listed file")
    if (found := sha256_file(file)) != expected:
        raise IntegrityError(str(file), expected, found)
