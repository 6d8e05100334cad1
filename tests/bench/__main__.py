"""`make bench`: a night with nothing changed, by GBS and by hand, in turn, on the same VM and KVM host.

By hand means: the same dumps over ssh, a bare rsync of the same trees with the same options, `rsnapshot sync` and
`rsnapshot daily`, client after client. Prefect's own start is not counted: GBS's time is from the start of the first
stage to the end of the last one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
from datetime import datetime

from tests.bench import run
from tests.bench.gauges import timed
from tests.lab.demo import Demo
from tests.lab.process import LabError

DUMPS = (
    "set -e; umask 077; mkdir -p /var/tmp/bench; cd /var/tmp/bench;"
    " for d in postgres shop; do runuser -u postgres -- pg_dump -Fc $d >$d.dump; pg_restore -f /dev/null $d.dump; done;"
    " runuser -u postgres -- pg_dumpall --globals-only >globals.sql;"
    " mariadb-dump --single-transaction --routines --events --triggers --databases crm >crm.sql;"
    " mariadb-dump --system=users >users.sql; sync; sha256sum * >/dev/null"
)
TREE = "-aHAXSx --numeric-ids --relative --delete --delete-excluded --stats"


class ByHand:
    """The same night without GBS, into folders of its own."""

    def __init__(self, demo: Demo) -> None:
        self.demo = demo
        self.root = demo.lab.directory / "by-hand"

    def rsync(self, client: str) -> None:
        """Pull one client as GBS does, with nothing around it."""
        night = json.loads((self.demo.site.store / "overnight" / client / "manifest.json").read_text())
        port = (self.demo.lab.kvm1 if client == "kvm1" else self.demo.lab.web1).ssh_port
        ssh = f"ssh -F none -p {port} -l root -i {self.demo.lab.private_key} -c aes128-gcm@openssh.com"
        ssh += f" -o BatchMode=yes -o UserKnownHostsFile={self.demo.lab.known_hosts}"
        argv = ["rsync", *TREE.split(), *(f"--exclude={pattern}" for pattern in night["excluded"]), "-e", ssh]
        paths = [f"127.0.0.1:{night['paths'][0]}", *(f":{path}" for path in night["paths"][1:])]
        target = self.root / "overnight" / client
        target.mkdir(parents=True, exist_ok=True)
        subprocess.run([*argv, *paths, f"{target}/"], check=True, stdout=subprocess.DEVNULL)

    def rsnapshot(self, client: str) -> None:
        """Sync and rotate one client with a plain configuration."""
        root = self.root / "permanent" / client
        root.mkdir(parents=True, exist_ok=True)
        rows = [
            ("config_version", "1.2"),
            ("snapshot_root", f"{root}/"),
            ("cmd_rsync", "/usr/bin/rsync"),
            ("cmd_rm", "/bin/rm"),
            ("retain", "daily", "14"),
            ("sync_first", "1"),
            ("link_dest", "1"),
            ("rsync_short_args", "-aHAXS"),
            ("rsync_long_args", "--numeric-ids --delete"),
            ("backup", f"{self.root}/overnight/{client}/", "./"),
        ]
        config = self.root / f"{client}.conf"
        config.write_text("".join("\t".join(row) + "\n" for row in rows))
        for command in ("sync", "daily"):
            subprocess.run(["rsnapshot", "-c", str(config), command], check=True)

    def dumps(self) -> None:
        """The dumps of web1 by the engines' own tools, in one ssh."""
        self.demo.lab.web1.run(DUMPS, timeout_s=900)


def night_by_hand(hand: ByHand) -> dict[str, float]:
    """One night without GBS: seconds by what was done."""
    return {
        "dumps": timed(hand.dumps),
        "rsync": sum(timed(lambda client=client: hand.rsync(client)) for client in ("kvm1", "web1")),  # type: ignore[misc]
        "rsnapshot": sum(timed(lambda client=client: hand.rsnapshot(client)) for client in ("kvm1", "web1")),  # type: ignore[misc]
    }


def night_by_gbs(demo: Demo) -> dict[str, float]:
    """One night by GBS: seconds by stage (summed over both clients), and from first start to last end."""
    demo.gbs("gbs", "run", "nightly", capture=True)
    newest = max(demo.site.store.glob("reports/nightly-*.json"), key=lambda path: path.stat().st_mtime)
    results = json.loads(newest.read_text())["results"]
    bad = [f"{row['client']} {row['stage']}" for row in results if row["outcome"] not in ("OK", "SKIPPED")]
    if bad:
        raise LabError(f"not everything went well: {', '.join(bad)}")
    moments = [(datetime.fromisoformat(row["started"]), datetime.fromisoformat(row["ended"])) for row in results]
    stages: dict[str, float] = {}
    for row, (began, ended) in zip(results, moments, strict=True):
        stages[row["stage"]] = stages.get(row["stage"], 0) + (ended - began).total_seconds()
    stages["wall"] = (max(ended for _, ended in moments) - min(began for began, _ in moments)).total_seconds()
    return stages


def main() -> int:
    """Run both in turn, print the medians side by side."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--name", default="demo", help="the lab to use; it is brought up when it is not")
    options = parser.parse_args()
    demo = Demo(options.name)
    demo.set_up()
    demo.gbs("gbs", "run", "nightly", capture=True)
    hand = ByHand(demo)
    night_by_hand(hand)
    rounds = [(night_by_hand(hand), night_by_gbs(demo)) for _ in range(options.rounds)]
    bare = {key: statistics.median(one[key] for one, _ in rounds) for key in rounds[0][0]}
    ours = {key: statistics.median(one[key] for _, one in rounds) for key in rounds[0][1]}
    total = sum(bare.values())
    beyond = statistics.median(one["wall"] - sum(hand_.values()) for hand_, one in rounds)
    print(f"\nA night with nothing changed, two clients, medians of {options.rounds} rounds in turn, seconds")
    print("| by hand | s | GBS (stages side by side, summed) | s |")
    print("|---|---|---|---|")
    pairs = (("dumps", "prepare"), ("rsync", "overnight"), ("rsnapshot", "permanent"))
    for left, right in pairs:
        print(f"| {left} | {bare[left]:.1f} | {right} | {ours[right]:.1f} |")
    print(f"| all, one after the other | {total:.1f} | all, from first start to last end | {ours['wall']:.1f} |")
    print(f"\nGBS beyond the work by hand: {beyond:+.1f} s; ratio {ours['wall'] / total:.2f}")
    return 0


if __name__ == "__main__":
    run(main)
