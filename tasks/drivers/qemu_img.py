"""qemu-img(1), with the format always stated: a guest that writes a qcow2 header into its raw disk is never probed.

Each verb takes a shell, so that it runs on the KVM host that has the file or on this machine (`LocalShell`). Programs
that need progress or a pipe take an argv from the `*_argv` builders instead.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tasks.drivers.host_shell import HostShell
from tasks.drivers.ssh import Output
from tasks.errors import CommandFailed, IntegrityError
from tasks.model.window import Layer

ImageFormat = Literal["qcow2", "raw"]
QUICK_DEADLINE_S = 60
_KEPT_OPTIONS = ("compat", "compression-type", "lazy-refcounts", "refcount-bits", "extended-l2")
CHECK_CORRUPT, CHECK_LEAKED = 2, 3
"""Exit statuses of `qemu-img check` for a damaged image and for one that merely wastes space."""


@dataclass(frozen=True)
class ImageInfo:
    """What an image's own header says, and what it takes on disk."""

    path: str
    format: str
    virtual_size_bytes: int
    allocated_bytes: int
    backing: str | None = None
    backing_format: str | None = None
    data_file: str | None = None
    encrypted: bool = False
    keeps_bitmaps: bool = False
    """It is qcow2 version 3 (compat 1.1), which can keep track of changes."""
    options: tuple[str, ...] = ()
    """What a qcow2 image was created with, as `qemu-img create -o` takes it."""


def program_argv(*words: str) -> list[str]:
    """A qemu-img command. No word of ours that comes from data may be taken for an option."""
    return ["qemu-img", *words]


def graph(layers: Sequence[Layer]) -> str:
    """A file name that states a whole chain (`json:{…}`), topmost first, so that neither headers nor names are
    interpreted.
    """
    node: dict[str, Any] | None = None
    for layer in reversed(layers):
        protocol = "host_device" if layer.kind == "block" else "file"
        below = {"backing": node} if layer.format == "qcow2" else {}
        node = {"driver": layer.format, "file": {"driver": protocol, "filename": layer.path}, **below}
    return "json:" + json.dumps(node)


def parse_info(done: Output, path: str, image_format: str) -> ImageInfo:
    """What `qemu-img info --output json` said about an image; CommandFailed or IntegrityError when it says nothing."""
    if done.status != 0:
        raise CommandFailed(f"qemu-img info {path}", done.status, done.stderr.strip()[-500:])
    try:
        found = json.loads(done.stdout)
        data = found.get("format-specific", {}).get("data", {})
        return ImageInfo(
            path=path,
            format=str(found["format"]),
            virtual_size_bytes=int(found["virtual-size"]),
            allocated_bytes=int(found.get("actual-size", 0)),
            backing=found.get("full-backing-filename") or found.get("backing-filename"),
            backing_format=found.get("backing-filename-format"),
            data_file=data.get("data-file"),
            keeps_bitmaps=found["format"] == "qcow2" and data.get("compat") == "1.1",
            encrypted=bool(found.get("encrypted")) or "encrypt" in data,
            options=_options(found, data) if found["format"] == "qcow2" else (),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise IntegrityError(path, f"a {image_format} image", f"{type(exc).__name__}: {exc}") from exc


def _options(found: Mapping[str, Any], data: Mapping[str, Any]) -> tuple[str, ...]:
    named = {name.replace("-", "_"): data[name] for name in _KEPT_OPTIONS if name in data}
    named["cluster_size"] = found["cluster-size"]
    return tuple(f"{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in named.items())


def info_argv(path: str, image_format: str, *, shared: bool = False) -> list[str]:
    """Ask for the header of an image, without its backing files; `parse_info` reads the answer.

    With `shared` also while a VM writes to it. Without, it fails when a process has it open for writing, which is a
    proof that none has.
    """
    flags = ["-U"] if shared else []
    return program_argv("info", *flags, "-f", image_format, "--output", "json", "--", _plain(path))


def info(shell: HostShell, path: str, image_format: str, *, shared: bool = False) -> ImageInfo:
    """What the header of an image says; CommandFailed when it is no image of that format, or `info_argv` says why."""
    argv = info_argv(path, image_format, shared=shared)
    return parse_info(shell.run(argv, deadline_s=QUICK_DEADLINE_S), path, image_format)


def zeroes(shell: HostShell, layer: Layer, *, deadline_s: float) -> list[tuple[int, int]]:
    """Where an image without a backing file is zero without storing that, as (offset, length) in bytes."""
    argv = program_argv("map", "--output", "json", graph([layer]))
    done = shell.run(argv, deadline_s=deadline_s, name=f"qemu-img map {layer.path}")
    try:
        extents = [(each["start"], each["length"], each["zero"], each["data"]) for each in json.loads(done.stdout)]
    except (ValueError, KeyError, TypeError) as exc:
        raise IntegrityError(layer.path, f"a {layer.format} image", f"{type(exc).__name__}: {exc}") from exc
    return [(start, length) for start, length, zero, data in extents if zero and not data]


def require_complete(found: ImageInfo) -> None:
    """Raise IntegrityError unless the image is whole in itself: no backing file, no data file, not encrypted."""
    if found.backing is not None:
        raise IntegrityError(found.path, "an image without a backing file", f"backing file {found.backing!r}")
    if found.data_file is not None:
        raise IntegrityError(found.path, "an image without a data file", f"data file {found.data_file!r}")
    if found.encrypted:
        raise IntegrityError(found.path, "an image that is not encrypted", "an encrypted one")


def check(shell: HostShell, path: str, image_format: str, *, deadline_s: float, shared: bool = False) -> None:
    """Raise IntegrityError unless `qemu-img check` finds the image sound (leaked clusters only waste space).

    Raw images have nothing to check. With `shared` also while a VM has it open; nobody may write to it.
    """
    if image_format == "raw":
        return
    flags = ["-U"] if shared else []
    argv = program_argv("check", "-q", *flags, "-f", image_format, "--", _plain(path))
    done = shell.run(argv, deadline_s=deadline_s, check=False)
    if done.status in (0, CHECK_LEAKED):
        return
    said = (done.stderr or done.stdout).strip()[-500:]
    if done.status == CHECK_CORRUPT:
        raise IntegrityError(path, "an image that qemu-img check finds sound", said)
    raise CommandFailed(f"qemu-img check {path}", done.status, said)


def convert_argv(
    source: str,
    source_format: ImageFormat,
    target: str,
    target_format: ImageFormat,
    options: Sequence[str] = (),
    *,
    shared: bool = False,
) -> list[str]:
    """Copy an image, whole and without its backing files, to a new one made with `options`; progress goes to stdout.

    The caller syncs: `-t none` would need direct I/O of every file system.
    """
    flags = ["-U"] if shared else []
    if options:
        flags += ["-o", ",".join(options)]
    return program_argv(
        "convert", "-p", *flags, "-f", source_format, "-O", target_format, "--", _plain(source), _plain(target)
    )


def create_overlay(shell: HostShell, path: str, base: str, base_format: ImageFormat) -> None:
    """A new qcow2 file whose content is that of `base` until it is written to; `base` is only read."""
    argv = program_argv("create", "-q", "-f", "qcow2", "-F", base_format, "-b", _plain(base), "--", _plain(path))
    shell.run(argv, deadline_s=QUICK_DEADLINE_S, name=f"qemu-img create {path}")


def commit(shell: HostShell, overlay: str, below: Sequence[Layer], *, deadline_s: float) -> None:
    """Write what a qcow2 overlay holds into its base, the first of the layers below it, and flush it.

    The overlay stays as it was: a second call is harmless. CommandFailed when either is in use or anything breaks.
    """
    chain = graph([Layer(path=overlay, format="qcow2"), *below])
    # -d keeps the overlay's clusters: emptied half-way it could not be committed again.
    shell.run(program_argv("commit", "-q", "-d", chain), deadline_s=deadline_s, name=f"qemu-img commit {overlay}")
    shell.run(["sync", "--", below[0].path], deadline_s=QUICK_DEADLINE_S)


def _plain(path: str) -> str:
    """A path that qemu-img takes for nothing else: `nbd:x` or `json:x` below the current folder would be a protocol."""
    if not path.startswith("/"):
        raise CommandFailed("qemu-img", 1, f"{path!r} is not an absolute path")
    return path


def parse_progress(chunk: bytes) -> float | None:
    """The percentage that `convert -p` last wrote in a chunk of its output, or None."""
    found = re.findall(rb"\((\d+\.\d+)/100%\)", chunk)
    return float(found[-1]) if found else None
