"""A KVM host before a VM is brought back to it: what is in the way there, and what is missing. Nothing is changed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import libvirt

from tasks.drivers import recovery_files
from tasks.drivers.host_files import DEADLINE_S, folder_of, free_space
from tasks.drivers.host_shell import HostShell, run_each
from tasks.drivers.libvirt_host import Host, HostDomain
from tasks.errors import HypervisorError
from tasks.model.assessment import Finding
from tasks.model.domain_capabilities import Capabilities, Fit, fit, machine_family, parse_capabilities
from tasks.model.domain_recovery import run_of
from tasks.model.domain_xml import Domain, names_file, parse_domain, read_tree
from tasks.model.names import human_bytes
from tasks.model.recovery_plan import ISOLATED, Identity, Plan, Pool
from tasks.model.recovery_record import PutRecord

OTHER_HOST = "choose another KVM host with --to"
_FILE_POOLS = ("dir", "fs", "netfs")


@dataclass(frozen=True)
class Target:
    """A KVM host that a VM is to be brought to."""

    host: Host
    shell: HostShell

    def read(self, what: str, function: Any, *gone: int) -> Any:
        """What a call of libvirt returns; None when it ends with one of the error codes `gone`."""

        def ask() -> Any:
            try:
                return function(self.host.connection)
            except libvirt.libvirtError as exc:
                if exc.get_error_code() in gone:
                    return None
                raise

        return self.host.call(what, "", ask)


def refused(subject: str, reason: str, fix: str) -> Finding:
    """A finding that refuses the recovery."""
    return Finding(verdict="refused", subject=subject, reason=reason, fix=fix)


def pools(target: Target, names: Iterable[str]) -> dict[str, Pool]:
    """Of the storage pools with these names, those that the host has."""
    found = {}
    for name in dict.fromkeys(names):

        def look(connection: Any, name: str = name) -> tuple[bool, str]:
            pool = connection.storagePoolLookupByName(name)
            return bool(pool.isActive()), str(pool.XMLDesc(0))

        if (answer := target.read(f"look up pool {name}", look, libvirt.VIR_ERR_NO_STORAGE_POOL)) is not None:
            active, text = answer
            root = read_tree(text, root_tag="pool")
            folder = root.findtext("target/path") if root.get("type") in _FILE_POOLS else None
            found[name] = Pool(name=name, active=active, folder=folder)
    return found


def clashes(
    target: Target,
    plan: Plan,
    domain: Domain,
    volumes: Iterable[str],
    there: Mapping[str, Pool],
    earlier: PutRecord | None = None,
) -> list[Finding]:
    """Why the VM cannot be put there: names, UUIDs, MACs, files and volumes in use, networks and pools that lack.

    What an `earlier` run put there is in nobody's way: it is removed first.
    """
    return [
        *_identities(target, plan, domain, earlier),
        *_files(target, plan, earlier),
        *_pools(volumes, there),
        *_networks(target, plan, domain),
        *_secret(target, plan, domain),
    ]


def _identities(target: Target, plan: Plan, domain: Domain, earlier: PutRecord | None) -> list[Finding]:
    identity, where, found = plan.identity, target.host.name, []
    macs = {identity.macs.get(mac, mac) for mac in domain.macs}
    for other in target.host.domains():
        texts = [other.xml(), *filter(None, [other.inactive_xml()])]
        if earlier is not None and run_of(texts[-1]) == earlier.run:
            continue
        if other.name == identity.name:
            fix = f"shut it down and rename it: virsh domrename {other.name} NEW-NAME; or bring back a second one: --as"
            found.append(refused("name", f"{where} has a VM of that name", fix))
        if other.uuid == identity.uuid:
            fix = f"undefine that one first ({other.name}), or bring back a second VM: --as"
            found.append(refused("UUID", f"{where} has a VM with its UUID {identity.uuid}", fix))
        elif taken := sorted(macs & {mac for text in texts for mac in parse_domain(text).macs}):
            fix = "change that one's, or bring back a second VM: --as"
            found.append(refused("MAC", f"{', '.join(taken)} belongs to VM {other.name} on {where}", fix))
        for place in plan.places:
            if other.uuid != identity.uuid and any(names_file(text, place.path, place.volume) for text in texts):
                fix = "that VM would share it: remove it from its definition"
                found.append(refused(f"file of {place.role}", f"VM {other.name} on {where} names {place.path}", fix))
    return found


def _files(target: Target, plan: Plan, earlier: PutRecord | None) -> list[Finding]:
    """One round trip for all of them; a path is taken by whatever lies there, a dangling link too."""
    places = plan.places
    looks = [["test", *test, place.path] for place in places for test in (("-e",), ("-L",))]
    folders = sorted({folder_of(disk.path) for disk in plan.disks})
    answers = run_each(target.shell, [*looks, *(["test", "-d", folder] for folder in folders)], deadline_s=DEADLINE_S)
    found = []
    ours = {file.path for file in recovery_files.own(target.shell, earlier.files)} if earlier is not None else ()
    for number, place in enumerate(places):
        if place.path not in ours and 0 in (answers[2 * number].status, answers[2 * number + 1].status):
            reason = f"{place.path} exists on {target.host.name}"
            found.append(refused(f"file of {place.role}", reason, "move it away; it is never overwritten"))
    for folder, answer in zip(folders, answers[len(looks) :], strict=True):
        if answer.status != 0:
            found.append(refused("folder", f"{target.host.name} has no {folder}", f"make it, or {OTHER_HOST}"))
    return found


def _pools(volumes: Iterable[str], there: Mapping[str, Pool]) -> list[Finding]:
    found = []
    for name in sorted({volume.partition("/")[0] for volume in volumes if volume}):
        pool = there.get(name)
        if pool is None:
            fix = "define it (virsh pool-define; its definition is in the image), or " + OTHER_HOST
            found.append(refused("pool", f"the host has no pool {name}", fix))
        elif not pool.active:
            found.append(refused("pool", f"pool {name} is not active", f"start it: virsh pool-start {name}"))
        elif pool.folder is None:
            reason = f"the volumes of pool {name} are no files: the disk becomes a file beside the others"
            found.append(Finding(verdict="note", subject="pool", reason=reason))
    return found


def _secret(target: Target, plan: Plan, domain: Domain) -> list[Finding]:
    """An encrypted TPM does not start without the secret of its state, which no image holds."""
    uuid = domain.tpm_secret
    if uuid is None or all(place.role != "tpm" for place in plan.parts):
        return []

    def look(connection: Any) -> bool:
        return connection.secretLookupByUUIDString(uuid) is not None

    if target.read(f"look up secret {uuid}", look, libvirt.VIR_ERR_NO_SECRET):
        return []
    fix = "define it with its UUID and value: virsh secret-define, virsh secret-set-value"
    return [refused("secret", f"{target.host.name} has no secret {uuid}, which the TPM's state is encrypted with", fix)]


def _networks(target: Target, plan: Plan, domain: Domain) -> list[Finding]:
    if plan.networks is None:
        wanted = {f"{card.kind}:{card.source}" for card in domain.interfaces if card.kind in ("network", "bridge")}
    else:
        wanted = set(plan.networks.values())
    found = []
    for kind, _, name in sorted(each.partition(":") for each in wanted):
        fix = f"give the VM another: --network {name}=…, or --isolated"
        if (
            kind == "bridge"
            and target.shell.run(["test", "-e", f"/sys/class/net/{name}"], deadline_s=DEADLINE_S, check=False).status
        ):
            found.append(refused("bridge", f"{target.host.name} has no bridge {name}", fix))
        if kind == "network":
            found += _network(target, name, plan, fix)
    return found


def _network(target: Target, name: str, plan: Plan, fix: str) -> list[Finding]:
    def look(connection: Any) -> tuple[bool, str]:
        network = connection.networkLookupByName(name)
        return bool(network.isActive()), str(network.XMLDesc(0))

    answer = target.read(f"look up network {name}", look, libvirt.VIR_ERR_NO_NETWORK)
    if plan.isolated and name == ISOLATED:
        leads = answer is not None and leads_out(answer[1])
        fix = f"remove it: virsh net-undefine {ISOLATED}"
        return [refused("network", f"network {ISOLATED} is not ours: it leads out of its host", fix)] if leads else []
    if answer is None:
        return [refused("network", f"{target.host.name} has no network {name}", fix)]
    if not answer[0]:
        return [refused("network", f"network {name} is not active", f"start it: virsh net-start {name}; or {fix}")]
    return []


def leads_out(text: str) -> bool:
    """Whether a network forwards, or gives its host an address on it."""
    root = read_tree(text, root_tag="network")
    return root.find("forward") is not None or root.find("ip") is not None


@dataclass(frozen=True)
class Need:
    """The bytes that a file takes as it is allocated now, that it may take at most, and that it has there already."""

    size_bytes: int
    most_bytes: int = 0
    there_bytes: int = 0


def room(target: Target, plan: Plan, needed: Mapping[str, Need], growth_bytes: int = 0) -> list[Finding]:
    """Refused where the files of a file system do not fit together; `needed` by role.

    They may grow by so many bytes before they come there, all of it in any of them.
    """
    needs: dict[str, list[Need]] = {}
    where: dict[str, tuple[int, str]] = {}
    for place in plan.places:
        folder = folder_of(place.path)
        left = free_space(target.shell, folder)
        needs.setdefault(left.file_system, []).append(needed.get(place.role, Need(0)))
        where.setdefault(left.file_system, (left.size_bytes, folder))
    sums = {
        system: min(
            sum(need.size_bytes for need in files) + growth_bytes,
            sum(max(need.size_bytes, need.most_bytes) for need in files),
        )
        - sum(need.there_bytes for need in files)
        for system, files in needs.items()
    }
    return [
        refused(
            "room",
            f"{folder} on {target.host.name} has {human_bytes(free)} free, {human_bytes(taken)} are needed",
            "make room or " + OTHER_HOST,
        )
        for system, taken in sums.items()
        for free, folder in (where[system],)
        if free < taken
    ]


def capabilities(target: Target, domain: Domain, *, tpm: bool) -> tuple[Fit, list[Finding]]:
    """What the host lacks for the VM by `virConnectGetDomainCapabilities`, and what stands for it."""
    where, family = target.host.name, machine_family(domain.machine or "")
    reasons = []
    for machine in dict.fromkeys((domain.machine, family)):
        try:
            found = _capabilities(target, domain, machine)
        except HypervisorError as exc:
            reasons.append(str(exc.args[-1]))
        else:
            return fit(domain, found, machine=machine if machine != domain.machine else None, tpm=tpm)
    what = f"{domain.type} VMs of {domain.arch} with machine {domain.machine}"
    return Fit(), [refused("emulator", f"{where} runs no {what}: {reasons[0]}", OTHER_HOST)]


def _capabilities(target: Target, domain: Domain, machine: str | None) -> Capabilities:
    return parse_capabilities(
        target.read(
            "ask for capabilities",
            lambda connection: str(connection.getDomainCapabilities(None, domain.arch, machine, domain.type, 0)),
        )
    )


def known(host: Host, identity: Identity) -> HostDomain | None:
    """The VM of that name or UUID, whether it runs or not."""
    return host.find(identity.name) or host.find_uuid(identity.uuid)


def runs(host: Host, uuid: str) -> HostDomain | None:
    """The VM of that UUID if it runs on the host (or is paused there)."""
    found = host.find_uuid(uuid)
    active = found is not None and found.call("ask whether it runs", lambda handle: bool(handle.isActive()))
    return found if active else None
