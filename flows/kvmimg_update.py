"""Bring a copy of a VM's image up to the files of a night."""

from prefect import flow

from flows.vm_name import VmName
from tasks import images, nights, places, updating
from tasks.model.night_choice import Night
from tasks.model.recovery import Sources, UpdatedImage


def choose(vm: str, night: str) -> Sources:
    """What the VM would be brought back from, nothing read yet but manifests."""
    client, _ = places.client_of_vm(vm)
    definition = images.find(vm)
    return updating.choose_sources(vm, client, definition, nights.choose_night(client, night))


def update_image(sources: Sources) -> UpdatedImage:
    """A verified copy of the image with the verified files of the night in it."""
    updating.verify_sources(sources.image_folder, sources.image)
    night = Night(sources.night_name, sources.night_folder, sources.night)
    with nights.opened(night) as files:
        nights.verify(night, files)
        folder = updating.copy_image(sources)
        try:
            return updating.finish(sources, folder, updating.update(sources, files, folder))
        except BaseException:
            updating.remove(folder)
            raise


@flow(name="kvmimg-update", flow_run_name="update image of {vm} to {night}")
def kvmimg_update(vm: VmName, night: str = "latest") -> UpdatedImage:
    """Make a bootable image of the VM as of a night: its image, updated with that night's files.

    Args:
        vm: The VM, as libvirt names it.
        night: latest, overnight, daily.N, an id, or a date (YYYY-MM-DD).
    """
    sources = choose(vm, night)
    with places.locked("client", sources.client):
        return update_image(sources)
