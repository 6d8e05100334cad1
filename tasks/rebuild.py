"""Rebuild a system from a template: choose one, make a copy of it the client's disks, and see that they boot."""

import logging
from dataclasses import replace
from pathlib import Path, PurePosixPath

from tasks import places
from tasks.drivers import adoption as appliance_adoption
from tasks.drivers.appliance import DiskFile, UpdateResult
from tasks.drivers.progress import reporting
from tasks.drivers.store import listed_model, read_model
from tasks.errors import NothingToRecover, RecoveryRefused, UnknownName
from tasks.model.adoption import adoption
from tasks.model.boot_repair import repair_of
from tasks.model.definition import Definition
from tasks.model.facts import Facts
from tasks.model.image_update import update_plan
from tasks.model.manifest import MANIFEST, TEMPLATE, ImageManifest, TemplateManifest
from tasks.model.names import slug
from tasks.model.night_choice import Night
from tasks.model.physical_definition import Machine, physical_definition, target_of
from tasks.model.recovery import OVERLAY, Sources
from tasks.model.shape import shape_of_facts
from tasks.model.template_disks import as_disks_of, as_new_disks
from tasks.retryable import retryable

log = logging.getLogger(__name__)
ADOPT_DEADLINE_S = 1800
BOOT_DEADLINE_S = 3600


@retryable("choose template", "choose template for {client}", retries=0)
def choose_template(client: str, definition: Definition, night: Night, wanted: str | None = None) -> Sources:
    """A template that serves a VM without an image of its own: of the night's flavour, else one that it can grow from.

    `wanted` is a flavour, or the image that a template was made of (VM/ID). UnknownName when there is none of that
    name, NothingToRecover with the reason when none serves.
    """
    folder, template, image = _serving(client, night, wanted)
    disks = as_disks_of(image, definition.domain)
    return _sources(client, definition.domain.name, definition.kvm_host, definition.xml, night, folder, template, disks)


@retryable("choose template", "choose template for {client}, to be a VM on {kvm_host}", retries=0)
def choose_for_physical(
    client: str, night: Night, kvm_host: str, machine: Machine, wanted: str | None = None
) -> Sources:
    """A template for a physical client that is rebuilt as a VM, with a definition made from its facts.

    Raises as `choose_template`, and RecoveryRefused when the facts do not make a definition.
    """
    facts = _facts_of(client, night)
    if facts is None:
        fix = "recover it from its overnight copy: --from overnight"
        raise RecoveryRefused(f"client {client}", f"the facts of night {night.manifest.id} are not at hand", fix)
    folder, template, image = _serving(client, night, wanted)
    _, block = places.kvm_host(kvm_host)
    targets = [target_of(number) for number in range(len(image.disks))]
    paths = [str(PurePosixPath(block.image_folder, f"{slug(client)}-{target}.qcow2")) for target in targets]
    xml = physical_definition(facts, name=client, disks=paths, machine=machine)
    return _sources(client, client, kvm_host, xml, night, folder, template, as_new_disks(image, paths))


def _sources(
    client: str,
    vm: str,
    kvm_host: str,
    xml: str,
    night: Night,
    folder: Path,
    template: TemplateManifest,
    image: ImageManifest,
) -> Sources:
    log.info("%s is rebuilt from template %s/%s of flavour %s", vm, template.vm, template.image, template.flavour)
    return Sources(
        vm=vm,
        client=client,
        kvm_host=kvm_host,
        xml=xml,
        image_folder=folder,
        image=image,
        night_name=night.name,
        night_folder=night.folder,
        night=night.manifest,
        template=template,
    )


def _serving(client: str, night: Night, wanted: str | None) -> tuple[Path, TemplateManifest, ImageManifest]:
    """The template to take; those of the very flavour before others, newer images before older ones."""
    found = _templates()
    asked = [row for row in found if wanted in (None, row[1].flavour, f"{row[1].vm}/{row[1].image}")]
    if not asked and wanted is not None:
        raise UnknownName("template", wanted, [f"{row[1].vm}/{row[1].image}" for row in found])
    flavour, facts = night.manifest.flavour, _facts_of(client, night)
    reasons = list[str]()
    for row in sorted(asked, key=lambda row: (row[1].flavour == flavour, row[1].image), reverse=True):
        if facts is None and row[1].flavour == flavour:
            return row  # what stands against it shows when its copy is adopted
        if facts is not None:
            try:
                adoption(facts, row[1].shape, client=client, called=f"{row[1].vm}/{row[1].image}")
            except RecoveryRefused as exc:
                reasons.append(str(exc))
            else:
                return row
    why = reasons[0] if reasons else f"none is of flavour {flavour}; make one: gbs image template add IMAGE"
    raise NothingToRecover(f"client {client}", f"of {len(asked)} templates none serves it: {why}")


def _templates() -> list[tuple[Path, TemplateManifest, ImageManifest]]:
    rows = []
    for path in sorted(places.store().templates.glob(f"*/[!.]*/{TEMPLATE}")):
        template = listed_model(path, TemplateManifest)
        image = listed_model(path.with_name(MANIFEST), ImageManifest)
        if template is not None and image is not None:
            rows.append((path.parent, template, image))
    return rows


def _facts_of(client: str, night: Night) -> Facts | None:
    """The night's facts, or those of the overnight copy when the disks were the same then; None when not at hand."""
    for folder in (night.folder, places.store().overnight(client)):
        facts = read_model(folder / "facts.json", Facts) if folder else None
        if facts is not None and (folder == night.folder or shape_of_facts(facts).flavour == night.manifest.flavour):
            return facts
    return None


@retryable("adopt", "make a template's copy the disks of {sources.vm}", retries=0)
def adopt(sources: Sources, template: TemplateManifest, files: Path, folder: Path) -> None:
    """Give the overlays in `folder` the identity that the night's facts tell; RecoveryRefused when it cannot be."""
    called = f"{template.vm}/{template.image}"
    wanted = adoption(_facts_in(sources, files), template.shape, client=sources.client, called=called)
    with reporting(log, f"make template {called} the disks of {sources.vm}") as progress:
        appliance_adoption.adopt(
            _overlays(sources, folder),
            wanted,
            image=f"template {called}",
            deadline_s=ADOPT_DEADLINE_S,
            on_progress=lambda text, _part: progress.say(text),
        )


@retryable("make bootable", "make the disks of {sources.vm} bootable", retries=0)
def make_bootable(
    sources: Sources, template: TemplateManifest, files: Path, folder: Path, result: UpdateResult
) -> UpdateResult:
    """See to what boots the updated overlays; the result with where they came from and what was done as warnings.

    A client that is no VM of the inventory gets what its kernel needs in one, too.
    """
    facts = _facts_in(sources, files)
    was_physical = sources.vm not in places.inventory().vms
    with reporting(log, f"make {sources.vm} bootable") as progress:
        made = appliance_adoption.make_bootable(
            _overlays(sources, folder),
            update_plan(facts, sources.night).mounts,
            repair_of(facts, was_physical=was_physical),
            image=f"the disks of {sources.vm}",
            deadline_s=BOOT_DEADLINE_S,
            on_progress=lambda text, _part: progress.say(text),
        )
    origin = f"rebuilt from template {template.vm}/{template.image} of flavour {template.flavour}"
    return replace(result, warnings=(origin, *made.done, *made.warnings, *result.warnings))


def _facts_in(sources: Sources, files: Path) -> Facts:
    facts = read_model(files / "facts.json", Facts)
    if facts is None:
        raise RecoveryRefused(f"VM {sources.vm}", f"night {sources.night.id} has no facts", "choose another night")
    return facts


def _overlays(sources: Sources, folder: Path) -> list[DiskFile]:
    return [DiskFile(folder / f"{disk.target}{OVERLAY}", "qcow2") for disk in sources.image.disks]
