"""How the appliance gets the night's files: an rsync daemon that QEMU itself starts for the one address it can reach.

The appliance has a network card whose user-mode network is closed (`restrict=on`): nothing leaves it and nothing comes
in, but a connection to RSYNC_ADDRESS is answered by a fresh `rsync --daemon` on a socket of QEMU's (`guestfwd`). So
there is no port on the host, no password, and the daemon ends with QEMU. What rsync prints goes to a file through a
virtio-serial port, which is never waited for.

It needs QEMU's user-mode network (slirp). A virtio-serial port would do without and was tried: rsync over it wants a
relay in the appliance with traps of its own (a non-blocking stdout, an end of file that never comes).
"""

import shlex
from dataclasses import dataclass
from pathlib import Path

MODULE = "data"
RSYNC_ADDRESS = "169.254.2.100"
_APPLIANCE_ADDRESS = "169.254.2.10/16"
_OUTPUT = "org.gbs.output"
_CONFIG = """\
use chroot = yes
uid = 0
gid = 0
numeric ids = yes
read only = {read_only}
munge symlinks = no
reverse lookup = no
log file = {folder}/rsyncd.log
fake super = {fake_super}
[{module}]
path = {folder}/source
"""

PREPARE = f"""
set -e
card=$(ls /sys/class/net | grep -v '^lo$')
ip link set "$card" up
ip addr add {_APPLIANCE_ADDRESS} dev "$card"
"""
"""Brings up the card in the appliance."""
OUTPUT_PORT = f"/dev/virtio-ports/{_OUTPUT}"
"""Where rsync prints to, in the appliance."""
SOURCE = f"rsync://{RSYNC_ADDRESS}/{MODULE}/"
"""The night's files, as the appliance names them."""


@dataclass(frozen=True)
class Channel:
    """The channel's files on this machine, in a private folder without spaces or commas in its name."""

    folder: Path

    @property
    def output(self) -> Path:
        """What rsync in the appliance printed so far."""
        return self.folder / "output"

    def prepare(self, source: Path, *, fake_super: bool, writable: bool = False) -> list[tuple[str, str]]:
        """Write the daemon's configuration for the folder `source`; the QEMU parameters for `guestfs.config`."""
        (self.folder / "source").symlink_to(source.resolve(strict=True))
        config = self.folder / "rsyncd.conf"
        text = _CONFIG.format(
            folder=self.folder,
            module=MODULE,
            fake_super="yes" if fake_super else "no",
            read_only="no" if writable else "yes",
        )
        config.write_text(text, encoding="utf-8")
        self.output.touch()
        daemon = shlex.join(["rsync", "--daemon", f"--config={config}"])
        network = f"user,id=gbs,restrict=on,net=169.254.0.0/16,guestfwd=tcp:{RSYNC_ADDRESS}:873-cmd:{daemon}"
        return [
            ("-netdev", network),
            ("-device", "virtio-net-pci,netdev=gbs"),
            ("-chardev", f"file,id={_OUTPUT},path={self.output}"),
            ("-device", f"virtserialport,chardev={_OUTPUT},name={_OUTPUT}"),
        ]

    def log_tail(self) -> str:
        """The last words of the daemon's log."""
        log = self.folder / "rsyncd.log"
        return log.read_bytes()[-1000:].decode("utf-8", "replace").strip() if log.exists() else ""
