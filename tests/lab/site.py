"""A GBS site for a lab: an inventory, a store, a permanent store with its marker."""

import yaml

from tests.lab.lab import Lab
from tests.lab.recovery_key import recovery_key

STORE_ID = "lab-permanent"


class Site:
    """The GBS server of a lab, below the lab's folder."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.root = lab.directory / "gbs"
        self.store = self.root / "store"
        self.permanent = self.root / "permanent"
        self.inventory = self.root / "inventory.yaml"
        self.recovery_key = self.root / "recovery-key"

    def create(self) -> None:
        """Make the folders, the marker and the inventory; what is there stays."""
        self.store.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.permanent.mkdir(parents=True, exist_ok=True, mode=0o700)
        (self.store / ".gbs-near-store").touch()
        (self.permanent / ".gbs-store").write_text(f"{STORE_ID}\n")
        self.inventory.write_text(yaml.safe_dump(self.declaration(), sort_keys=False))

    def declaration(self) -> dict[str, object]:
        """What the inventory says."""
        return {
            "site": "lab",
            "store": {"path": str(self.store)},
            "permanent": {"path": str(self.permanent), "store_id": STORE_ID, "kind": "local"},
            "server": {"recovery_keys": [recovery_key(self.recovery_key)]},
            "identities": {
                "default": {
                    "user": "root",
                    "private_key_file": str(self.lab.private_key),
                    "known_hosts_file": str(self.lab.known_hosts),
                }
            },
            # What every host can do; the backup API has tests of its own.
            "policies": {"default": {"image_method": "snaplive"}},
            "kvm_hosts": {
                "kvm1": {"address": "127.0.0.1", "port": self.lab.kvm1.ssh_port, "paths": ["/etc"]},
            },
            "clients": {
                "web1": {
                    "address": "127.0.0.1",
                    "port": self.lab.web1.ssh_port,
                    "vm": "web1",
                    "databases": [{"engine": "postgresql"}, {"engine": "mariadb"}],
                    "probes": [
                        {"command": ["runuser", "-u", "postgres", "--", "psql", "-d", "shop", "-c", "SELECT 1"]},
                        {"command": ["mariadb", "crm", "-e", "SELECT 1"]},
                    ],
                }
            },
        }
