"""Make an image a template: it then serves every system whose disks are of the same shape."""

from prefect import flow

from tasks import templates
from tasks.model.manifest import TemplateManifest


@flow(name="template-add", flow_run_name="template of {image}")
def template_add(image: str) -> TemplateManifest:
    """Compute the flavour of an image from the image itself and keep it as a template of that flavour.

    Args:
        image: A VM, for its newest image, or VM/ID.
    """
    folder, manifest = templates.find_image(image)
    return templates.add(folder, manifest, templates.read_shape(folder, manifest))
