"""What a recovery puts on a KVM host, noted in the store before each step: a run that was killed is undone by it."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from tasks.model.drill import PREFIX
from tasks.model.names import slug
from tasks.model.recovery_plan import ISOLATED, Plan

PARTIAL = ".gbs-partial"


class FileId(NamedTuple):
    """Which file it is, whatever it is called: an inode is given to another file as soon as the first is gone."""

    device: int
    inode: int
    born: str
    """When it was made, to the nanosecond; empty where the file system does not know."""


class PutFile(BaseModel):
    """A file or folder on the host; it is ours there when it is the one that was noted before it got its name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: str
    path: str
    volume: str = ""
    """POOL/VOLUME of a pool there."""
    inode: int | None = None
    device: int | None = None
    born: str = ""

    def is_it(self, found: FileId | None) -> bool:
        """Whether what was found in its place is what was noted; not when that cannot be told."""
        if found is None or found.inode != self.inode:
            return False
        if self.born and found.born:
            return found.born == self.born  # enough with the inode; a device may have another number after a boot
        return found.device == self.device


class PutRecord(BaseModel):
    """A recovery that has not ended: which VM it makes, of what, and the files that are or will be there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    """Of this recovery only: it marks the VM's definition and the names of files that are under way."""
    vm: str
    kvm_host: str
    name: str
    uuid: str
    image: str
    instead_of: str | None = None
    """The image that was chosen first, and was of no use."""
    night: str
    isolated: bool
    networks: dict[str, str] | None = None
    """As the plan has them."""
    files: tuple[PutFile, ...]
    working_copy: str | None = None
    """The folder in the store where its updated image is made."""
    started: bool = False
    """It is or was about to be started: from then on somebody may use the VM."""
    restored: tuple[str, ...] = ()
    """The engines and commands (`DumpRecord.called`) whose dumps it has loaded."""
    dropped: tuple[str, ...] = ()
    """What the definition lost on its way through the whitelist."""
    warnings: tuple[str, ...] = ()
    """What is to be known of the image that was updated, also by a run that goes on with this one."""

    @property
    def is_drill(self) -> bool:
        """Whether it is a drill's, whose VM nobody uses."""
        return self.isolated and self.name == f"{PREFIX}{self.vm}"

    @property
    def removal(self) -> str:
        """What removes the VM that it made, and its disks."""
        name = shlex.quote(self.name)
        return f"virsh destroy {name}; virsh undefine {name} --nvram --remove-all-storage"

    def partial(self, path: str) -> str:
        """What a file is called until it is whole."""
        return f"{path}{PARTIAL}-{self.run}"

    def noting(self, role: str, found: FileId) -> "PutRecord":
        """The record with which file one of its files is."""
        noted = found._asdict()
        files = tuple(file.model_copy(update=noted) if file.role == role else file for file in self.files)
        return self.model_copy(update={"files": files})


def record_name(kvm_host: str, uuid: str) -> str:
    """Where the record of a recovery is, below those of all."""
    return f"{slug(kvm_host)}/{slug(uuid)}.json"


def record_of(plan: Plan, run: str, vm: str, image: str, night: str) -> PutRecord:
    """The record of a recovery that begins."""
    return PutRecord(
        run=run,
        vm=vm,
        kvm_host=plan.kvm_host,
        name=plan.identity.name,
        uuid=plan.identity.uuid,
        image=image,
        night=night,
        isolated=plan.isolated,
        networks=plan.networks,
        files=tuple(PutFile(role=place.role, path=place.path, volume=place.volume) for place in plan.places),
    )


@dataclass(frozen=True)
class Settlement:
    """What becomes of an earlier run's VM and files when a recovery is asked for; `reason` and `fix` of a refusal."""

    verdict: Literal["go on", "clear", "refused"]
    reason: str = ""
    fix: str = ""
    runs: bool = False
    """Whether the earlier run's VM runs now."""


def settlement(earlier: PutRecord, wanted: PutRecord, *, there: bool, runs: bool, left: Sequence[str]) -> Settlement:
    """Go on with the very recovery that is asked for; clear what was never started; leave alone what may be in use.

    `there`: its VM is defined. `left`: those of its files that are still there and its own.
    """
    started = f"an earlier run started it on {earlier.kvm_host} as of image {earlier.image}, night {earlier.night}"
    # What is started is as of its night, from whatever image: there may be a newer one by now.
    same_image = earlier.started or wanted.image in (earlier.image, earlier.instead_of)
    if there and same_image and _asks_for(wanted) == _asks_for(earlier):
        return Settlement("go on", runs=runs)
    if there and (earlier.started or runs):
        reason = f"{started}, other than is asked for now: it may be in use"
        keep = f"keep it (remove recovery/.put/{record_name(earlier.kvm_host, earlier.uuid)} from the store)"
        fix = f"go on with that one (--from {earlier.night}, its networks), {keep}, or remove it: {earlier.removal}"
        return Settlement("refused", reason, fix, runs)
    if not there and earlier.started and left:
        reason = f"{started}; it is gone, but not its files: {', '.join(left)}"
        fix = "see that no VM of any host uses them (it may have moved), then remove them"
        return Settlement("refused", reason, fix)
    return Settlement("clear")


def _asks_for(record: PutRecord) -> tuple[str, bool, dict[str, str] | None]:
    return record.night, record.isolated, record.networks


def what_to_do(record: PutRecord, *, physical: bool) -> str:
    """What an operator reads of a recovery that was interrupted: that it is, and how it is ended."""
    kind = "physical" if physical else "vm"
    command = f"gbs recover {kind} {shlex.quote(record.vm)} --from {record.night} --to {record.kvm_host}"
    if record.name != record.vm:
        command += f" --as {shlex.quote(record.name)}"
    if record.isolated:
        command += " --isolated"
    if physical or (record.networks is not None and not record.isolated):
        command += " and its --network"
    used = "goes on with its VM, which may be in use, and loads no dumps over it"
    does = used if record.started else "removes what it left first"
    return f"the recovery of {record.vm} to {record.kvm_host} was cut off; {command} {does}"


def isolated_network(run: str) -> str:
    """The definition of the network that leads nowhere: no forwarding, no address of its host, no DHCP, no DNS."""
    return (
        f"<network><name>{ISOLATED}</name><metadata><gbs:recovery xmlns:gbs='urn:gbs:recovery' run='{run}'/></metadata>"
        "<bridge stp='on' delay='0'/><dns enable='no'/></network>"
    )
