"""`gbs`: back up, watch, verify and recover. Subcommands are imported when called, because Prefect takes seconds."""

import importlib
from typing import Any

import click

from flows.cli import terminal

COMMANDS = {
    "check": ("flows.cli.check", "Try every connection, tool, mount and free space; one line per finding."),
    "run": ("flows.cli.run", "Run a stage, or the whole night, now."),
    "status": ("flows.cli.show", "What is protected, how well, and since when."),
    "list": ("flows.cli.show", "Images, restore points, held nights, drills, VMs that run from the store."),
    "space": ("flows.cli.space", "How full the stores are, until when, what saves room, what each client costs."),
    "store": (
        "flows.cli.store",
        "Make a store: on VDO, which deduplicates and compresses. The clock that the permanent store goes by.",
    ),
    "retention": (
        "flows.cli.retention",
        "Which restore points and replicas are kept, why, and what a policy would keep.",
    ),
    "pin": ("flows.cli.retention", "Keep a restore point until a day, whatever the policy says."),
    "unpin": ("flows.cli.retention", "Leave a pinned restore point to the policy again."),
    "accept": ("flows.cli.held", "Make a night that is held a restore point."),
    "reject": ("flows.cli.held", "Put a night that is held into the trash."),
    "find": ("flows.cli.find", "Where a file is, in which nights and versions; where a VM is in the backup data."),
    "diff": ("flows.cli.find", "What differs between two nights of a client."),
    "verify": ("flows.cli.verify", "Read images and restore points again and compare them with their manifests."),
    "coverage": ("flows.cli.coverage", "What is there and nobody protects: VMs, file systems, databases."),
    "image": (
        "flows.cli.image",
        "Templates; replicas of images that come back from the permanent store, or are pinned.",
    ),
    "device": ("flows.cli.device", "Configurations of network and SAN devices: history, changes, how to put one back."),
    "recover": ("flows.cli.recover", "Bring back what was lost."),
    "drill": ("flows.cli.drill", "Prove that VMs can be recovered, where it disturbs nobody."),
    "plan": ("flows.cli.plan", "How a VM is brought back by hand, with plain tools, when nothing of GBS is left."),
    "instant": ("flows.cli.instant", "Run a VM from the store at once; move it to its host, or take it away again."),
    "reconcile": ("flows.cli.kvm", "Close snapshot windows that a crash left open."),
    "inventory": ("flows.cli.inventory", "Validate and show the inventory."),
    "apply": ("flows.cli.apply", "Make Prefect's blocks from the inventory."),
    "deploy": ("flows.cli.apply", "Make the work pool and the deployments on the Prefect server."),
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _ = COMMANDS[cmd_name]
        command: Any = getattr(importlib.import_module(module), f"{cmd_name}_command")
        return command if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="gbs")
def gbs() -> None:
    """Back up KVM hosts, VMs and the systems around them, and bring them back.

    What is protected stands in the inventory (GBS_INVENTORY, else /etc/gbs/inventory.yaml). Start with
    `gbs inventory validate`, `gbs apply` and `gbs check`; then `gbs run nightly` and `gbs status`.

    Exit codes: 0 done, 1 failed, 2 usage or inventory error, 3 done with warnings or partly, 10 nothing to recover
    from, 11 locked by another run, 75 try again later, 130 cancelled.
    """


def main() -> None:
    """The console script."""
    terminal.run(gbs)
