"""Bring an image back that the store has lost, from its replica in the permanent store."""

from prefect import flow

from flows.vm_name import VmName
from tasks import places, replication


@flow(name="image-fetch", flow_run_name="fetch image {image} of {vm}")
def image_fetch(vm: VmName, image: str = "newest") -> str:
    """Copy a replica back into the store, each chunk proven; the id of the image. What the store has is left alone.

    Args:
        vm: The VM, as libvirt names it.
        image: Its id, or newest.
    """
    with places.locked("replica", replication.called_of("image", vm)):
        return replication.fetch_image(vm, image)
