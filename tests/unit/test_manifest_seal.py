"""A manifest proves itself: no flipped bit of one is ever read as something else."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tasks.drivers.store import read_model, write_model
from tasks.errors import IntegrityError
from tasks.model.manifest import OWN, ImageManifest, NightManifest
from tests.unit.records import NIGHT, image_manifest, night_manifest

if TYPE_CHECKING:
    from pydantic import BaseModel


@pytest.mark.parametrize("manifest", [night_manifest(warnings=("naïve",)), image_manifest(window_s=0.1)])
def test_no_flipped_bit_is_read_as_something_else(tmp_path: Path, manifest: BaseModel) -> None:
    path = tmp_path / "manifest.json"
    write_model(path, manifest)
    whole = path.read_bytes()
    assert read_model(path, type(manifest)) == manifest
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(IntegrityError):
            read_model(path, type(manifest))


def test_a_manifest_of_before_is_taken_as_it_is_and_a_changed_one_is_sealed_anew(tmp_path: Path) -> None:
    path, before = tmp_path / "manifest.json", image_manifest()
    write_model(path, before)
    record = json.loads(path.read_text())
    del record[OWN]
    path.write_text(json.dumps(record))
    assert read_model(path, ImageManifest) == before
    night = night_manifest()
    write_model(path, night.model_copy(update={"ended": NIGHT + timedelta(hours=1)}))
    assert read_model(path, NightManifest) != night


def test_a_record_that_lost_its_truth_says_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    write_model(path, image_manifest())
    path.write_text(path.read_text().replace("web1", "web2"))
    with pytest.raises(IntegrityError, match="not what it was written as"):
        read_model(path, ImageManifest)
