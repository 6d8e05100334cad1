"""Overlays of ours that no journal knows: found by their names, told to the operator, never touched."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.drivers.journal import read_records, unfinished
from tasks.drivers.libvirt_host import Host
from tasks.model.domain_xml import Disk, parse_domain
from tasks.model.window import open_window_of, run_of_overlay


@dataclass(frozen=True)
class StrayOverlay:
    """A disk that is on, or above, an overlay named like ours, and nothing says why."""

    vm: str
    uuid: str
    target: str
    overlay: str
    run: str


def scan(host: Host, journal_folder: Path) -> list[StrayOverlay]:
    """The stray overlays in the live and inactive definitions of all VMs of a host."""
    known = _overlays_of_journals(unfinished(journal_folder, host.name))
    found: dict[StrayOverlay, None] = {}
    for domain in host.domains():
        for text in (domain.xml(), domain.inactive_xml()):
            for disk in parse_domain(text).disks if text else ():
                for overlay in _overlays(disk):
                    if (domain.uuid, overlay) not in known:
                        run = run_of_overlay(overlay) or ""
                        found[StrayOverlay(domain.name, domain.uuid, disk.target, overlay, run)] = None
    return list(found)


def _overlays(disk: Disk) -> list[str]:
    return [path for path in (disk.source, *disk.backing) if path is not None and run_of_overlay(path) is not None]


def _overlays_of_journals(paths: Sequence[Path]) -> set[tuple[str, str]]:
    windows = [open_window_of(read_records(path)) for path in paths]
    return {(window.plan.uuid, disk.overlay) for window in windows if window for disk in window.plan.disks}
