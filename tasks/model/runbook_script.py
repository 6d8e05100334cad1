"""A runbook: a shell script that brings a VM back by hand, with plain tools only, when nothing of GBS is left.

It names what there was when it was made: the image and the night that a recovery would take, by their paths in the
stores. Every step ends with a check. Nothing that exists is overwritten.
"""

from collections.abc import Iterator
from pathlib import PurePosixPath

from tasks.model import runbook_disks, runbook_files, runbook_guest, runbook_host
from tasks.model.domain_xml import parse_domain
from tasks.model.names import slug
from tasks.model.runbook import Runbook
from tasks.model.runbook_text import DECISIONS, ENDING, HELPERS
from tasks.model.shell_text import below, comment, step, word


def render(runbook: Runbook) -> str:
    """The script."""
    guest, dumps = runbook.guest is not None, runbook.restores and runbook.why_no_files is None
    numbered = [
        ("look: tools, what is read from, what must not be there yet", runbook_disks.look(runbook)),
        ("prove the image", runbook_disks.prove_image(runbook)),
        ("prove the night", runbook_disks.prove_night(runbook)),
        ("copy the disks", runbook_disks.copy(runbook)),
        ("put the files of the night into the disks", runbook_files.update(runbook)),
        ("bring the disks to the KVM host", runbook_host.send(runbook)),
        ("put back what makes the VM besides its disks", runbook_host.parts(runbook)),
        ("define the VM and start it", runbook_host.start(runbook)),
        *([("wait until the VM answers", runbook_guest.wait(runbook))] if guest else []),
        *([("load the databases' dumps", runbook_guest.restores(runbook))] if guest and dumps else []),
        *([("probe", runbook_guest.probes(runbook))] if guest and runbook.probes else []),
    ]
    steps = "".join(step(number, title, body) for number, (title, body) in enumerate(numbered, 1))
    return f"{_head(runbook)}{_decisions(runbook)}{HELPERS}{steps}{ENDING}"


def _head(runbook: Runbook) -> str:
    image, night = runbook.image, runbook.night
    lines = [
        f"Brings back the VM {runbook.vm} (client {runbook.client}) by hand: plain tools, nothing of GBS.",
        f"Made {runbook.made:%Y-%m-%d %H:%M} UTC from what the stores had then; make it anew after every night.",
        "",
        f"Disks: image {image.id}, as of {image.instant:%Y-%m-%d %H:%M:%S} UTC ({image.consistency}-consistent).",
        f"Files: night {night.id} ({runbook.night_name}), ended {night.ended:%Y-%m-%d %H:%M:%S} UTC, "
        f"{night.files} files.",
        *(f"LOOK: {warning}" for warning in runbook.warnings),
        *(f"Warning of that night: {warning}" for warning in night.warnings),
        *(f"Warning of that image: {warning}" for warning in (*image.warnings, *image.parts.warnings)),
        *(f"NOT DONE HERE: {text}" for text in _gaps(runbook)),
        "",
        "Run it as root with bash on a machine that sees the stores. It needs there: bash, "
        "coreutils, qemu-img, rsync, openssh, and guestfish with rsync and the file systems in its appliance",
        "  Debian: qemu-utils guestfish libguestfs-rsync libguestfs-xfs linux-image-cloud-amd64",
        "  RHEL: qemu-img guestfs-tools libguestfs-rsync libguestfs-xfs",
        "On the KVM host: libvirt with virsh, rsync.",
        "It stops at the first check that fails, and says which. It never overwrites: what it made before it stopped "
        "is to be removed by hand before it runs again.",
    ]
    return "#!/bin/bash\n" + "\n".join(comment(line) for line in lines) + "\nset -euo pipefail\n"


def _gaps(runbook: Runbook) -> Iterator[str]:
    if (reason := runbook.why_no_files) is not None:
        yield (
            f"the night's files are not put into the disks: {reason}. The VM comes back as of its image; "
            "copy what you need from NIGHT/data when it runs, and load the dumps that are there."
        )
    yield from runbook_files.warnings(runbook)
    yield from runbook.gaps
    for secret in runbook.image.parts.secrets:
        yield f"libvirt's secret {secret} is in no backup: define it on the KVM host before the VM is started."
    for role in ("kernel", "initrd", "dtb"):
        if role in runbook.image.parts.files:
            where = runbook.image.parts.sources.get(role, "")
            yield f"the VM was started with the {role} {where}, in the image {role}: add it to the definition."
    yield from (f"dropped from the definition: {text}" for text in runbook_host.rewritten(runbook).dropped)
    if runbook.guest is None:
        yield "no ssh reaches the VM: look at its console, load dumps and probe by hand."


def _decisions(runbook: Runbook) -> str:
    host, guest = runbook.host, runbook.guest
    key = (guest or host).private_key_file
    values = {
        "WORK": str(PurePosixPath("/var/tmp", f"recover-{slug(runbook.vm)}")),  # noqa: S108 - the operator's to choose
        "KVM_HOST": host.address,
        "KVM_USER": host.user,
        "KVM_PORT": str(host.port),
        "KVM_KEY": str(host.private_key_file),
        "KNOWN_HOSTS": str(host.known_hosts_file),
        "LIBVIRT": runbook.libvirt_uri,
        "GUEST": guest.address if guest else "",
        "GUEST_USER": guest.user if guest else "",
        "GUEST_PORT": str(guest.port) if guest else "22",
        "GUEST_KEY": str(key),
    }
    image = f"IMAGE={runbook.image_place.shell}"
    night = f"NIGHT={runbook.night_place.shell if runbook.night_place else below('WORK', 'night')}"
    places = [
        f"DISK_{number}={word(path)}  # {disk.virtual_size_bytes} bytes at most, {disk.format}"
        for number, (disk, path) in enumerate(runbook.disks, 1)
    ]
    networks = [
        f"NETWORK_{number}={word(name)}  # a libvirt {kind}" if kind == "network" else f"NETWORK_{number}={word(name)}"
        for number, (kind, name) in enumerate(runbook_host.networks(runbook), 1)
    ]
    domain, variables = parse_domain(runbook.xml), runbook_host.nvram(runbook)
    fixed = [f"VM={word(domain.name)}", f"UUID={word(domain.uuid)}"]
    return DECISIONS.format(
        **{name: word(value) for name, value in values.items()},
        stores="\n".join(f"{root}={word(path)}" for root, path in _roots(runbook)),
        where="\n".join((image, night)),
        places="\n".join(places),
        networks="\n".join(networks) or "# (none: it has no card on a network or bridge)",
        nvram=f"NVRAM={word(variables)}\n" if variables else "",
        fixed="\n".join(fixed),
    )


def _roots(runbook: Runbook) -> Iterator[tuple[str, str]]:
    """The stores that something is read from."""
    used = {place.root for place in (runbook.image_place, runbook.night_place) if place is not None}
    folders = {"STORE": runbook.store, "PERMANENT": runbook.permanent}
    yield from ((root, path) for root, path in folders.items() if root in used)
