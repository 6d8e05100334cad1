"""Runbooks: golden scripts (GBS_REGENERATE=1 rewrites them), and names that are only ever data to bash."""

from __future__ import annotations

import os
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import NothingToRecover, UnknownName
from tasks.model import runbook_disks
from tasks.model.image_choice import newest_fitting
from tasks.model.inventory_systems import Probe
from tasks.model.manifest import DiskRecord, FileRecord, VmParts
from tasks.model.runbook import TARGET, Bringing, Place, Restore, Runbook
from tasks.model.runbook_script import render
from tasks.model.runbook_text import HELPERS
from tasks.model.shell_text import comment, document, word
from tasks.model.ssh_target import SshTarget
from tests.unit.records import ZEROS, facts, file_system, image_manifest, night_manifest, pulled_image

GOLDEN = Path(__file__).parent / "golden" / "runbook"
HOSTILE = ("-rf", "a;b", "a$(touch owned)`id`", 'it\'s "<x>" & co', "a\nexit 1\n# b", "@DISK_1@", "é\u202e\udcff")


def target(name: str, **changed: Any) -> SshTarget:
    values: dict[str, Any] = {"address": f"{name}.example.org", "user": "root", "port": 22}
    files = {"private_key_file": Path("/etc/gbs/id_ed25519"), "known_hosts_file": Path("/etc/gbs/known_hosts")}
    return SshTarget(name, **{**values, **files, **changed})


ROOT = file_system("/", "/dev/mapper/vg0-root", "ext4", "4f92d847-ddfa-4629-b144-b4eb21c05b95")
VAR = file_system("/var", "/dev/mapper/vg0-var", "xfs", "a5d0f1d2-0f9c-4a2e-9b3f-2d7e5f0a1b2c")


def plain(**changed: Any) -> Runbook:
    """web1 of the lab: one disk, LVM, PostgreSQL, from the overnight copy."""
    values: dict[str, Any] = {
        "made": datetime(2026, 11, 26, 6, 0, tzinfo=UTC),
        "vm": "web1",
        "client": "web1",
        "xml": (GOLDEN.parent / "domain/lab.in.xml").read_text(),
        "store": "/srv/gbs",
        "permanent": "/srv/permanent",
        "image": pulled_image(),
        "image_place": Place("STORE", "images/kvm1/web1/20261124T000000Z"),
        "night": night_manifest(paths=("/", "/var"), excluded=("/var/lib/postgresql/*/*/*", "*.tmp")),
        "night_name": "overnight",
        "night_place": Place("STORE", "overnight/web1"),
        "bringing": None,
        "facts": facts(VAR, ROOT),
        "host": target("kvm1"),
        "libvirt_uri": "qemu:///system",
        "image_folder": "/var/lib/libvirt/images",
        "guest": target("web1"),
        "restores": (
            Restore(
                "postgresql shop",
                "/var/backups/gbs/postgresql/shop.dump",
                ZEROS,
                ("sh", "-euc", "login=$1\nload \"$2\" 'x'\n", "gbs", "", "shop", "/var/backups/gbs/shop.dump"),
                ("sh", "-euc", "login=$1\nready\n", "gbs", ""),
            ),
        ),
        "probes": (Probe(command=("systemctl", "is-active", "nginx")), Probe(tcp=443)),
    }
    return Runbook(**(values | changed))


def lost_store() -> Runbook:
    """A UEFI guest with two disks and a TPM; the store is lost, the nights are restic's."""
    disks = (
        DiskRecord(
            target="vda",
            file="vda.raw",
            format="raw",
            source="/vm/efi1.qcow2",
            source_format="qcow2",
            options=("cluster_size=65536", "compat=1.1"),
            virtual_size_bytes=2 << 30,
        ),
        DiskRecord(
            target="vdb", file="vdb.raw", format="raw", source="/dev/vg/b", source_kind="block", virtual_size_bytes=1
        ),
    )
    files = ("vda.raw", "vdb.raw", "nvram", "tpm.tar", "network-default.xml")
    image = image_manifest(
        vm="efi1",
        disks=disks,
        files=tuple(FileRecord(path=name, size_bytes=1, sha256=ZEROS) for name in files),
        parts=VmParts(
            autostart=True,
            files={"nvram": "nvram"},
            tpm_state="tpm.tar",
            networks={"default": "network-default.xml"},
            secrets=("ceph client.libvirt",),
            warnings=("its kernel is not in the image: gone",),
        ),
    )
    xml = (GOLDEN.parent / "domain/plain.in.xml").read_text()
    xml = xml.replace("<os>", "<os firmware='efi'>").replace("</disk>", _SECOND_DISK, 1)
    restore = ("restic", "--repo", "s3:https://s3.example.org/b/efi1", "restore", "4f5a", "--target", TARGET)
    return plain(
        vm="web1",
        client="efi1",
        xml=xml,
        image=image,
        image_place=Place("PERMANENT", "_images/kvm1/efi1/20261102T020000Z"),
        night=night_manifest(paths=("/", "/boot/efi"), excluded=(), fake_super=True, warnings=("2 files vanished",)),
        night_name="daily.0",
        night_place=None,
        bringing=Bringing("restic", restore, "/etc/gbs/s3.env", (("RESTIC_PASSWORD_FILE", "/etc/gbs/restic"),)),
        facts=facts(ROOT, file_system("/boot/efi", "/dev/vda1", "vfat", "1A2B-3C4D")),
        host=target("kvm2", port=2222),
        restores=(),
        probes=(),
    )


_SECOND_DISK = """</disk>
    <disk type='block' device='disk'>
      <driver name='qemu' type='raw'/>
      <source dev='/dev/vg/b'/>
      <target dev='vdb' bus='virtio'/>
    </disk>"""


@pytest.mark.parametrize(("name", "runbook"), [("plain", plain()), ("lost-store", lost_store())])
def test_runbook_is_the_golden_script_and_shellcheck_finds_nothing(name: str, runbook: Runbook) -> None:
    path, text = GOLDEN / f"{name}.out.sh", render(runbook)
    if os.environ.get("GBS_REGENERATE"):
        path.write_text(text)
    assert text == path.read_text()
    # SC2029: what ssh is given expands here, as is meant; SC2317: functions that a shorter runbook does not call.
    argv = ["shellcheck", "--severity=warning", "--exclude=SC2029,SC2317", str(path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_name_is_only_data_to_bash(name: str) -> None:
    """In variables as it is, in comments on one line, in every step without a word of code."""
    root = file_system("/", f"/dev/vda1[{name}]", "btrfs", name)
    disk = DiskRecord(target="vda", file="vda.raw", format="raw", source=f"/x/{name}", virtual_size_bytes=1)
    sum_ = FileRecord(path="vda.raw", size_bytes=1, sha256=ZEROS)
    restore = Restore(name, f"/dumps/{name}", ZEROS, ("sh", "-euc", name, "gbs", name), (name,))
    bringing = Bringing(name, ("bring", f"x{name}", TARGET), f"/{name}", (("WORD", name),))
    night = night_manifest(id=name, paths=("/",), excluded=(f"/{name}",), warnings=(name,))
    hostile = plain(
        vm=name,
        client=name,
        store=f"/store/{name}",
        image=image_manifest(id=name, vm=name, disks=(disk,), files=(sum_,)),
        image_place=Place("STORE", name),
        night=night,
        night_place=None,
        bringing=bringing,
        facts=facts(root),
        host=target(name, address=name),
        guest=target(name, address=name),
        restores=(restore,),
        probes=(Probe(command=(name, "x")),),
    )
    text = render(hostile)
    assert "".join(line for line in text.partition("set -euo")[0].splitlines() if not line.startswith("#")) == ""
    decided = text.partition("# ---------------------------------------------------------------- What")[2]
    decided = decided.partition("Helpers\n")[0]
    shown = '\nprintf "%s\\0" "$STORE" "$IMAGE" "$KVM_HOST" "$GUEST" "$DISK_1"'
    script = f"#{decided}{shown}".encode("utf-8", "surrogateescape")
    said = subprocess.run(["bash", "-euo", "pipefail"], input=script, capture_output=True, check=True).stdout
    expected = [f"/store/{name}", f"/store/{name}/{name}", name, name, f"/var/lib/libvirt/images/{name}"]
    assert [part.decode("utf-8", "surrogateescape") for part in said.split(b"\0")[:-1]] == expected
    argv = ["bash", "-n"]
    done = subprocess.run(argv, input=text.encode("utf-8", "surrogateescape"), capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert not Path("owned").exists()


@pytest.mark.parametrize("text", [*HOSTILE, "", "plain", "a b"])
def test_word_and_document_are_read_by_bash_as_they_are(text: str) -> None:
    script = f"printf '%s\\0' {word(text)}; cat {document('END', text)}\n"
    said = subprocess.run(
        ["bash"], input=script.encode("utf-8", "surrogateescape"), capture_output=True, check=True
    ).stdout
    first, _, rest = said.decode("utf-8", "surrogateescape").partition("\0")
    assert (first, rest) == (text, text if text.endswith("\n") else f"{text}\n")


def test_script_that_comes_by_a_pipe_is_not_read_by_ssh(tmp_path: Path) -> None:
    """Bash would find its end where ssh left it, and call that a success."""
    ssh = tmp_path / "ssh"
    ssh.write_text("#!/bin/sh\nexec cat\n")
    ssh.chmod(0o755)
    (tmp_path / "file").write_text("sent\n")
    calls = 'on_host true\nin_vm true\non_virsh list\non_host_from "$WORK/file" cat\necho reached\n'
    script = f"WORK={word(str(tmp_path))} KVM_HOST=x LIBVIRT=y\n{HELPERS}\n{calls}"
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    said = subprocess.run(["bash"], input=script, env=environment, capture_output=True, text=True, check=True)
    assert (said.stdout, said.stderr) == ("sent\nreached\n", "")


def test_document_ends_at_no_line_of_its_text() -> None:
    assert document("END", "a\nEND\nb").endswith("\nEND_")


def test_comment_has_no_line_without_its_sign() -> None:
    assert all(line.startswith("#") for line in comment("a\nb " * 200).splitlines())


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"facts": None}, "must be brought first"),
        ({"facts": facts()}, "name no file systems"),
        ({"facts": facts(ROOT.model_copy(update={"uuid": None}))}, "no UUID of /"),
        ({"night": night_manifest(paths=("/srv",))}, "holds only /srv"),
    ],
)
def test_runbook_says_why_the_files_are_not_put_in(changed: dict[str, Any], reason: str) -> None:
    text = render(plain(**changed))
    assert "NOT DONE HERE: the night's files" in text
    assert reason in " ".join(text.replace("\n# ", " ").split())
    assert "guestfish --listen" not in text


def test_newest_image_of_the_nights_layout_is_chosen() -> None:
    night = night_manifest(flavour="aa")
    images = [(Path(name), image_manifest(flavour=name)) for name in ("bb", "aa", "")]
    assert newest_fitting("web1", images, night)[0] == Path("aa")
    with pytest.raises(NothingToRecover, match=r"disk layout aa, the images have others: .* \(bb\)"):
        newest_fitting("web1", images[:1], night)
    with pytest.raises(NothingToRecover, match="there is no image of it"):
        newest_fitting("web1", [], night)
    with pytest.raises(UnknownName, match="no image named 'x': known are none"):
        newest_fitting("web1", [], night, "x")


@pytest.mark.parametrize(
    ("apart", "here", "problem"),
    [
        (True, "", ""),
        (False, "", "no room for .*/one/b on the KVM host: .* free on .*/one, its disks need 1258"),
        (True, "two", "no room in .*/two: .* free on .*/two, .* are needed there"),
    ],
)
def test_room_is_asked_for_by_file_system(tmp_path: Path, apart: bool, here: str, problem: str) -> None:
    """Two disks of 6 MiB; file systems of 10 MiB, in a mount namespace of their own."""
    for name in ("image", "one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "image/vda.raw").write_bytes(b"x" * (6 << 20))
    disks = tuple(
        DiskRecord(target=target, file="vda.raw", format="raw", source=f"/{target}", virtual_size_bytes=1)
        for target in ("vda", "vdb")
    )
    sum_ = FileRecord(path="vda.raw", size_bytes=1, sha256=ZEROS)
    text = runbook_disks.room(plain(image=image_manifest(disks=disks, files=(sum_,)), night=night_manifest()))
    values = {
        "IMAGE": tmp_path / "image",
        "WORK": tmp_path / here if here else tmp_path,
        "DISK_1": tmp_path / "one/a",
        "DISK_2": tmp_path / ("two/b" if apart else "one/b"),
    }
    mounts = "".join(f"mount -t tmpfs -o size=10M none {tmp_path}/{name}\n" for name in ("one", "two"))
    decided = "".join(f"{name}={word(str(value))}\n" for name, value in values.items())
    script = f"set -euo pipefail\n{mounts}{decided}KVM_HOST=\n{HELPERS}\n{text}\n"
    argv = ["unshare", "--map-root-user", "--mount", "bash", "-c", script]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == (problem == ""), done.stderr
    assert re.search(problem, done.stderr)
