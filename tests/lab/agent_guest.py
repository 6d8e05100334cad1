"""A guest of the lab without a network: it is talked to by its guest agent."""

from __future__ import annotations

import base64
import dataclasses
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.lab.guest import BOOT_DEADLINE_S, agent_answers
from tests.lab.guest_image import copy_image
from tests.lab.kvm_host import KvmHost
from tests.lab.process import LabError
from tests.lab.progress import phase

FOLDER = "/var/lib/libvirt/images"


@dataclasses.dataclass
class AgentGuest:
    """A guest `name` on a host of the lab, whatever its disks and its definition are."""

    host: KvmHost
    name: str

    @property
    def disks(self) -> dict[str, str]:
        """The host's paths of its images, by target."""
        raise NotImplementedError

    def domain_xml(self) -> str:
        """Its libvirt definition."""
        raise NotImplementedError

    def outside(self, path: str) -> Path:
        """Where the machine sees a file of the host."""
        return self.host.directory / "root" / path.lstrip("/")

    def define(self, *images: Path) -> None:
        """Give it copies of images as its disks, in their order, and define it."""
        for image, path in zip(images, self.disks.values(), strict=True):
            copy_image(image, self.outside(path))
        self.host.virsh("define", "/dev/stdin", input_text=self.domain_xml())

    def start(self) -> None:
        """Start it; returns when its agent answers. LabError when it does not."""
        self.host.virsh("start", self.name)
        self.wait_until_up()

    def wait_until_up(self) -> None:
        """Wait until its agent answers."""
        end = time.monotonic() + BOOT_DEADLINE_S
        with phase(f"{self.name}: waiting for the guest agent"):
            while not self.agent_answers():
                if time.monotonic() > end:
                    raise LabError(f"{self.name}: no answer of the guest agent in {BOOT_DEADLINE_S:.0f} s")
                time.sleep(0.5)

    def agent_answers(self) -> bool:
        """Whether the guest agent answers a ping."""
        return agent_answers(self.host, self.name)

    def run(self, script: str, *, deadline_s: float = 300) -> str:
        """Run a shell script in the guest by its agent; what it wrote. LabError when it fails."""
        arguments = {"path": "/bin/sh", "arg": ["-c", script], "capture-output": True}
        pid = self._agent("guest-exec", arguments)["pid"]
        end = time.monotonic() + deadline_s
        while not (status := self._agent("guest-exec-status", {"pid": pid}))["exited"]:
            if time.monotonic() > end:
                raise LabError(f"{self.name}: {script}: no end in {deadline_s:.0f} s")
            time.sleep(0.2)
        out, err = (base64.b64decode(status.get(name, "")).decode() for name in ("out-data", "err-data"))
        if status["exitcode"] != 0:
            raise LabError(f"{self.name}: {script}: exit {status['exitcode']}: {err or out}")
        return out

    def _agent(self, command: str, arguments: dict[str, object]) -> dict[str, Any]:
        request = json.dumps({"execute": command, "arguments": arguments})
        answer = json.loads(self.host.virsh("qemu-agent-command", "--timeout", "60", self.name, request))
        return dict(answer["return"])

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Its file systems do not change in the block, and what it wrote is on its disks."""
        self.host.virsh("domfsfreeze", self.name)
        try:
            yield
        finally:
            self.host.virsh("domfsthaw", self.name)

    def lose(self) -> None:
        """End it and remove its definition, its variables and its disks."""
        self.host.run(["virsh", "-q", "destroy", self.name], check=False)
        argv = ["virsh", "-q", "undefine", self.name, "--nvram", "--checkpoints-metadata"]
        self.host.run(argv, check=False)
        for path in self.disks.values():
            self.outside(path).unlink(missing_ok=True)
