"""Images of a tiny guest by the backup API, one upon the other, and what is true after each."""

from __future__ import annotations

from pathlib import Path

from tasks.drivers import backup_api, backup_job
from tasks.drivers.backup_survey import Parent
from tasks.drivers.host_shell import HostShell
from tasks.drivers.image_order import Order
from tasks.drivers.libvirt_host import Host
from tasks.model.image_method import Wishes
from tasks.model.image_taken import Taken
from tasks.model.ssh_target import SshTarget
from tests.lab.published import manifest_of
from tests.lab.snaplive_guest import journal_of
from tests.lab.tiny_guest import TinyGuest, last_record

WISHES = Wishes(min_free_bytes=1 << 20)


class Images:
    """Takes images of a guest one after the other, each the parent of the next."""

    def __init__(self, host: Host, shell: HostShell, target: SshTarget, guest: TinyGuest, folder: Path) -> None:
        self.host, self.shell, self.target, self.guest, self.folder = host, shell, target, guest, folder
        self.journal = journal_of(host, folder / "journal", guest)
        self.count = 0
        self.last: Parent | None = None
        self.uuid = host.domain(guest.name).uuid

    def take(self, wishes: Wishes = WISHES) -> tuple[Path, Taken]:
        """The next image; published when it is whole."""
        self.count += 1
        image_id = f"image-{self.count}"
        folder = self.folder / image_id
        folder.mkdir()
        order = Order(
            self.host, self.shell, self.target, self.journal, self.uuid, image_id, folder, wishes, parent=self.last
        )
        taken = backup_api.take(order)
        self.last = Parent(folder, manifest_of(taken, folder, self.uuid))
        backup_job.delete_checkpoints(self.host.domain(self.uuid), [taken.checkpoint or ""])
        return folder, taken


def records_of(folder: Path) -> tuple[int, int]:
    """The last record on each disk of an image, which must not be more than one apart."""
    first, second = (last_record(folder / f"{target}.raw", "raw") for target in ("vda", "vdb"))
    assert first - second in (0, 1), "the disks are not from one instant"
    return first, second


def assert_left_alone(images: Images, checkpoint: str | None) -> None:
    """The VM runs on its bases, has no job, no scratch file, and of our checkpoints only this one."""
    guest = images.guest
    assert guest.host.virsh("domstate", guest.name).strip() == "running"
    assert guest.host.run(["virsh", "-q", "backup-dumpxml", guest.name], check=False).returncode != 0
    names = guest.host.virsh("checkpoint-list", guest.name, "--name").split()
    assert names == ([checkpoint] if checkpoint else [])
    assert list(guest.host.images.glob("*.gbs-scratch-*")) == []
    assert images.journal.open_window() is None
    assert guest.host.run(["sh", "-c", "ls /run/gbs-* 2>/dev/null | wc -l"]).stdout.strip() == "0"
