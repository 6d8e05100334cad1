"""What a recovery puts on a KVM host, noted in the store before each step: a run that was killed is undone by it."""

from pydantic import BaseModel, ConfigDict

from tasks.model.recovery_plan import ISOLATED, Plan

PARTIAL = ".gbs-partial"


class PutFile(BaseModel):
    """A file or folder on the host; it is ours there when it is the inode that was noted before it got its name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: str
    path: str
    inode: int | None = None


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
    night: str
    isolated: bool
    files: tuple[PutFile, ...]
    working_copy: str | None = None
    """The folder in the store where its updated image is made."""

    def partial(self, path: str) -> str:
        """What a file is called until it is whole."""
        return f"{path}{PARTIAL}-{self.run}"

    def noting(self, role: str, inode: int) -> "PutRecord":
        """The record with the inode of one of its files."""
        files = tuple(file.model_copy(update={"inode": inode}) if file.role == role else file for file in self.files)
        return self.model_copy(update={"files": files})


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
        files=tuple(PutFile(role=place.role, path=place.path) for place in plan.places),
    )


def isolated_network(run: str) -> str:
    """The definition of the network that leads nowhere: no forwarding, no address of its host, no DHCP, no DNS."""
    return (
        f"<network><name>{ISOLATED}</name><metadata><gbs:recovery xmlns:gbs='urn:gbs:recovery' run='{run}'/></metadata>"
        "<bridge stp='on' delay='0'/><dns enable='no'/></network>"
    )
