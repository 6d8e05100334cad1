"""Steps of a runbook on the KVM host: disks, UEFI variables, TPM, networks, the definition, the start."""

from collections.abc import Iterator

from tasks.errors import RecoveryRefused
from tasks.model.domain_recovery import Rewritten, rewrite_for_recovery
from tasks.model.domain_whitelist import Wishes
from tasks.model.domain_xml import parse_domain, read_tree
from tasks.model.runbook import Runbook
from tasks.model.shell_text import document, word

NVRAM_FOLDER = "/var/lib/libvirt/qemu/nvram"
TPM_FOLDER = "/var/lib/libvirt/swtpm"
_START = r"""
on_host_from "$WORK/domain.xml" virsh --quiet --connect "$LIBVIRT" define /dev/stdin
[ "$(on_virsh domname "$UUID")" = "$VM" ] || fail "libvirt does not know the VM by its UUID"
ok "the VM is defined; its definition is $WORK/domain.xml"
on_virsh start "$UUID"
[ "$(on_virsh domstate "$UUID")" = running ] || fail "it does not run: look at its log in /var/log/libvirt/qemu"
ok "it runs"
"""


def networks(runbook: Runbook) -> list[tuple[str, str]]:
    """What the VM's cards are on: `network` or `bridge`, and its name."""
    found: dict[str, str] = {}
    for source in read_tree(runbook.xml).findall("devices/interface/source"):
        for kind in ("network", "bridge"):
            if name := source.get(kind):
                found.setdefault(name, kind)
    return [(kind, name) for name, kind in found.items()]


def nvram(runbook: Runbook) -> str | None:
    """Where its UEFI variables go; None when the image has none."""
    if "nvram" not in runbook.image.parts.files:
        return None
    return runbook.image.parts.sources.get("nvram") or f"{NVRAM_FOLDER}/{parse_domain(runbook.xml).name}_VARS.fd"


def rewritten(runbook: Runbook) -> Rewritten:
    """The definition through the same whitelist as a recovery's, with the names of variables where they belong."""
    domain = parse_domain(runbook.xml)
    cards = {name: f"{kind}:@NETWORK_{number}@" for number, (kind, name) in enumerate(networks(runbook), 1)}
    return rewrite_for_recovery(
        runbook.xml,
        Wishes(
            {disk.target: f"@DISK_{number}@" for number, (disk, _) in enumerate(runbook.disks, 1)},
            name=domain.name,
            uuid=domain.uuid,
            networks={**cards, "user": "user"},
            domain_type=domain.type,
            formats={disk.target: disk.format for disk, _ in runbook.disks},
            nvram="@NVRAM@" if nvram(runbook) else None,
        ),
    )


def send(runbook: Runbook) -> str:
    """Each disk."""
    return "\n".join(
        f'send "$WORK/disk-{number}.{disk.format}" "$DISK_{number}"'
        for number, (disk, _) in enumerate(runbook.disks, 1)
    )


def parts(runbook: Runbook) -> str:
    """UEFI variables, the TPM's state; networks must be there."""
    return "\n".join([*_parts(runbook), 'ok "what the VM needs besides its disks is on the KVM host"'])


def _parts(runbook: Runbook) -> Iterator[str]:
    kept = runbook.image.parts
    if nvram(runbook):
        yield 'on_host mkdir -p -- "${NVRAM%/*}"'
        yield f'send "$IMAGE"/{word(kept.files["nvram"])} "$NVRAM"'
    if kept.tpm_state:
        state = f'"{TPM_FOLDER}/$UUID"'
        yield f'on_host test ! -e {state} || fail "the KVM host has a TPM of that VM already: move it away"'
        yield f"on_host mkdir -p -- {TPM_FOLDER}"
        yield f'on_host_from "$IMAGE"/{word(kept.tpm_state)} tar -C {TPM_FOLDER} --keep-old-files -xf -'
        yield f'on_host test -d {state} || fail "the state of its TPM is not where libvirt looks for it"'
    for number, (kind, name) in enumerate(networks(runbook), 1):
        wanted = f"NETWORK_{number}"
        if kind == "bridge":
            yield f'on_host test -e "/sys/class/net/${wanted}" || fail "the KVM host has no bridge ${wanted}"'
            continue
        fix = f"name another one in {wanted}"
        if name in kept.networks:
            fix += f", or: virsh net-define $IMAGE/{kept.networks[name]} and net-start"
        yield f'[ "$(on_virsh net-list --name | grep -cxF -e "${wanted}")" = 1 ] ||'
        yield f"    fail {word('no such network is active on the KVM host: ' + fix)}"


def start(runbook: Runbook) -> str:
    """Define it, start it."""
    domain = parse_domain(runbook.xml)
    if not all(char in "0123456789abcdef-" for char in domain.uuid):
        raise RecoveryRefused(f"VM {runbook.vm}", f"its UUID is {domain.uuid!r}", "correct its definition")
    variables = [f"DISK_{number}" for number, _ in enumerate(runbook.disks, 1)]
    variables += [f"NETWORK_{number}" for number, _ in enumerate(networks(runbook), 1)]
    variables += ["NVRAM"] if nvram(runbook) else []
    lines = [
        "# Only what is known to be safe is left of the old definition; @NAMES@ stand for what you decided above.",
        f"definition=$(cat {document('DEFINITION', rewritten(runbook).xml)}\n)",
        *(f'definition=${{definition//@{name}@/"$(xml_text "${name}")"}}' for name in variables),
        'printf \'%s\\n\' "$definition" >"$WORK/domain.xml"',
        _START.strip(),
    ]
    if runbook.image.parts.autostart:
        lines.append('on_virsh autostart "$UUID"\nok "it starts with the KVM host, as it did"')
    return "\n".join(lines)
