"""Make a disk whole of an image and an overlay on it: by shared extents where the file system can, else by one copy."""

from collections.abc import Sequence
from pathlib import Path

from tasks.drivers import process, qemu_img
from tasks.drivers.appliance import DiskFile
from tasks.drivers.host_shell import LocalShell
from tasks.errors import CommandFailed
from tasks.model.window import Layer


def make(base: DiskFile, overlay: Path | None, whole: DiskFile, options: Sequence[str], *, deadline_s: float) -> None:
    """Write `whole`, which is not there yet: what `overlay` (qcow2, on `base`) shows, or `base` alone without one.

    `base` is only read. In the format of `base`, on a file system with reflinks, only what the overlay holds is
    written. `options` are those of a new qcow2 file. The caller flushes.
    """
    if whole.format == base.format and _reflinked(base.path, whole.path, deadline_s):
        if overlay is not None:
            layer = Layer(path=str(whole.path), format=whole.format)
            qemu_img.commit(LocalShell(), str(overlay), [layer], deadline_s=deadline_s)
        return
    source = DiskFile(overlay, "qcow2") if overlay is not None else base
    argv = qemu_img.convert_argv(str(source.path), source.format, str(whole.path), whole.format, options)
    process.run(argv, deadline_s=deadline_s, name=f"copy of {base.path.name}")


def _reflinked(source: Path, target: Path, deadline_s: float) -> bool:
    argv = ["cp", "--reflink=always", "--", str(source), str(target)]
    try:
        process.run(argv, deadline_s=deadline_s, name=f"reflink of {source.name}")
    except CommandFailed:
        target.unlink(missing_ok=True)  # cp leaves an empty one
        return False
    return True
