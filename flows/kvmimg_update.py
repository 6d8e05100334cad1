"""Bring an image of a VM up to the files of a night, on overlays: the image itself is never changed."""

import logging
from pathlib import Path

from prefect import State, flow

from flows.ending import completed
from flows.vm_name import VmName
from tasks import images, nights, places, rebuild, updating
from tasks.errors import ConfigError, IntegrityError, NothingToRecover
from tasks.model.night_choice import Night
from tasks.model.physical_definition import Machine
from tasks.model.recovery import Sources, UpdatedImage

log = logging.getLogger(__name__)


def choose(vm: str, night: str, image: str | None = None, template: str | None = None) -> Sources:
    """What the VM would be brought back from, nothing read yet but manifests.

    Without an image of its own that fits it is a template; `template` names one (a flavour or VM/ID), or is "any". An
    image that was asked for is taken, or refused.
    """
    if image is not None and template is not None:
        raise ConfigError("an image and a template were asked for", f"{image}, {template}", "name one of them")
    client, _ = places.client_of_vm(vm)
    definition, chosen = images.find(vm), nights.choose_night(client, night)
    if template is not None:
        return rebuild.choose_template(client, definition, chosen, None if template == "any" else template)
    try:
        return updating.choose_sources(vm, client, definition, chosen, image)
    except NothingToRecover as no_image:
        if image is not None:
            raise
        try:
            return rebuild.choose_template(client, definition, chosen)
        except NothingToRecover as no_template:
            raise NothingToRecover(f"VM {vm}", f"{no_image.args[1]}; {no_template.args[1]}") from no_template


def choose_physical(client: str, night: str, kvm_host: str, machine: Machine, template: str | None = None) -> Sources:
    """What a physical client would be rebuilt from as a VM of a KVM host; `template` as for `choose`."""
    wanted = None if template == "any" else template
    return rebuild.choose_for_physical(client, nights.choose_night(client, night), kvm_host, machine, wanted)


def update_image(sources: Sources, *, fall_back: bool = True, reuse: bool = False) -> UpdatedImage:
    """The verified image with the verified files of the night in it, published; the caller holds the client's lock.

    An image that is damaged, or has not what the night needs, is given up for the VM's next older one of the same
    layout, and the result's warnings say so; with `fall_back` off it is an error. `reuse`: the result may be that of
    an earlier run, and stays for others; else it is the caller's own, who removes it.
    """
    if reuse and (made := updating.earlier(sources)):
        return made
    night = Night(sources.night_name, sources.night_folder, sources.night)
    with nights.opened(night) as files:
        nights.verify(night, files)
        warnings = tuple[str, ...]()
        while True:
            try:
                return _update_one(sources, files, warnings, passing=not reuse)
            except IntegrityError as exc:
                older = updating.with_older_image(sources) if fall_back else None
                if older is None:
                    raise
                warnings += (f"{exc}; image {older.image.id} was taken instead",)
                log.warning("%s", warnings[-1])
                sources = older


def _update_one(sources: Sources, files: Path, warnings: tuple[str, ...], *, passing: bool) -> UpdatedImage:
    """Update this very image; on any error nothing of it is left."""
    updating.verify_sources(sources.image_folder, sources.image)
    folder = updating.begin(sources)
    try:
        if sources.template is None:
            result = updating.update(sources, files, folder)
        else:
            rebuild.adopt(sources, sources.template, files, folder)
            result = updating.update(sources, files, folder)
            result = rebuild.make_bootable(sources, sources.template, files, folder, result)
        return updating.finish(sources, folder, result, warnings, passing=passing)
    except BaseException:
        updating.remove(folder)
        raise


@flow(name="kvmimg-update", flow_run_name="update image of {vm} to {night}")
def kvmimg_update(
    vm: VmName, night: str = "latest", image: str | None = None, template: str | None = None
) -> State[UpdatedImage]:
    """Make a bootable image of the VM as of a night: its image, updated with that night's files.

    Args:
        vm: The VM, as libvirt names it.
        night: latest, overnight, daily.N, an id, or a date (YYYY-MM-DD).
        image: The id of the image to update. None means the newest that fits, and an older one if that is damaged.
        template: The template to take in place of an image: its flavour, VM/ID, or any. None means only without one.
    """
    sources = choose(vm, night, image, template)
    with places.locked("client", sources.client):
        updated = update_image(sources, fall_back=image is None, reuse=True)
    return completed(updated.outcome, "; ".join(updated.warnings) or str(updated.folder), updated)
