"""Fetch the image of a VM that is found by name in the backup data of the KVM hosts."""

from datetime import UTC, datetime
from pathlib import Path

from prefect import flow

from flows.reconcile import require_settled
from flows.side_by_side import Begun, as_ended, begin_each, results_of
from flows.stage import stage
from flows.vm_name import VmName
from tasks import images, places, windows
from tasks.model.definition import Definition
from tasks.model.image_method import Choice, WantedMethod
from tasks.model.image_taken import Taken
from tasks.model.manifest import ImageManifest
from tasks.model.names import new_id
from tasks.model.outcome import Outcome, StageResult


def take_image(vm: str, method: WantedMethod | None = None, full: bool = False) -> ImageManifest:
    """Take and publish an image of a VM (name or UUID), by `method` or as its policy says; `full` copies all of it."""
    definition = images.find(vm)
    # It may have been asked for by its UUID; an image lies and is found by its name.
    vm, host, uuid = definition.domain.name, definition.kvm_host, definition.domain.uuid
    with places.locked("vm", uuid), places.image_turn(host, places.policy_of_vm(vm).transfer_deadline_s):
        require_settled(host, uuid)
        choice = images.choose(definition, windows.power(host, uuid), method)
        image_id = new_id(datetime.now(UTC))
        folder = images.stage(definition, vm, image_id)
        try:
            parts = images.capture(definition, folder)
            taken = _take(definition, image_id, folder, choice, full)
            for disk in taken.disks:
                images.verify_disk(vm, disk, folder)
            manifest = images.publish_image(folder, definition, taken, parts, vm)
        finally:
            images.discard_staged(folder, vm)
        if choice.method == "backup-api":
            images.delete_old_checkpoints(definition, manifest, vm)
        return manifest


def _take(definition: Definition, image_id: str, folder: Path, choice: Choice, full: bool) -> Taken:
    if choice.method == "backup-api":
        return images.take_backup(definition, image_id, folder, choice.reason, full=full)
    take = images.take_live if choice.method == "snaplive" else images.take_offline
    return take(definition, image_id, folder, choice.reason)


def image_if_due(client: str) -> list[StageResult]:
    """The image of the VM that the client is, when it is due; nothing for a client that is no VM."""
    vm = getattr(places.system_of(client)[0], "vm", None)
    if vm is None:
        return []
    with stage(client, "image") as running:
        why = images.why_due(client, vm)
        if why is None:
            running.say(Outcome.SKIPPED, "the image there is serves")
        else:
            manifest = take_image(vm)
            running.produced = manifest.id
            running.bytes_moved = manifest.bytes_moved
            for warning in manifest.warnings:
                running.say(Outcome.WARNING, warning)
    return [running.result()]


def with_images_due(nights: Begun) -> list[StageResult]:
    """The results of the clients' nights that were begun, then those of the images that are due among them.

    An image is begun when the nights of its own client and of the KVM hosts have ended: files are safe first, and a VM
    is found in the backup data of its host, which is then there. It waits for no other client, which may be slow.
    """
    declared = places.inventory()
    unended, vms = set(nights), [client for client in nights if client in declared.vms.values()]
    begun: Begun = {}
    for ended in as_ended(nights):
        unended.remove(ended)
        if unended.isdisjoint(declared.kvm_hosts):
            ready = [client for client in vms if client not in unended and client not in begun]
            begun |= begin_each(image_if_due, ready, "image of {client}")
    return results_of(nights) + results_of(dict(sorted(begun.items(), key=lambda item: vms.index(item[0]))))


@flow(name="kvmimg-get", flow_run_name="image of {vm}")
def kvmimg_get(vm: VmName, method: WantedMethod | None = None, full: bool = False) -> ImageManifest:
    """Fetch an image of the VM now.

    Args:
        vm: The VM, as libvirt names it. It is found in the backup data of the KVM hosts.
        method: auto, backup-api, snaplive or offline. None means as the VM's policy says.
        full: Copy all of it, also where its changes since the last image would do.
    """
    return take_image(vm, method, full)
