"""Manifests: hostile and damaged ones are refused, and whole ones survive JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from tasks.model.manifest import OWN, DiskRecord, DumpRecord, FileRecord, ImageManifest, NightManifest
from tests.unit.records import ZEROS, image_manifest, night_manifest

OUTSIDE = ["", "/etc/shadow", "..", "../x", "a/../../x", "a/..", "/", ".", "a//b", "a/", "./a", "a\0b"]
DISK = {"target": "vda", "file": "vda.raw", "format": "raw", "source": "/x", "virtual_size_bytes": 1}


def refused(model: type[BaseModel], values: dict[str, Any]) -> str:
    with pytest.raises(ValidationError) as caught:
        model.model_validate_json(json.dumps(values))
    return str(caught.value)


@pytest.mark.parametrize("path", OUTSIDE)
def test_file_record_with_path_out_of_its_folder_is_refused(path: str) -> None:
    assert "leads out of its folder" in refused(FileRecord, {"path": path, "size_bytes": 1, "sha256": ZEROS})


@pytest.mark.parametrize("path", OUTSIDE)
def test_disk_record_with_path_out_of_its_folder_is_refused(path: str) -> None:
    """A manifest could make a recovery copy any file of the GBS server as a disk."""
    assert "leads out of its folder" in refused(DiskRecord, DISK | {"file": path})


@pytest.mark.parametrize("path", ["a", "a/b", "..a", "a..", "-rf", "a b", "a\nb", "é"])
def test_file_record_with_odd_name_is_taken(path: str) -> None:
    assert FileRecord(path=path, size_bytes=0, sha256=ZEROS).path == path


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(["..", ".", "", "a", "b"]), min_size=1, max_size=6))
def test_file_record_that_is_taken_stays_inside(parts: list[str]) -> None:
    path = "/".join(parts)
    try:
        FileRecord(path=path, size_bytes=0, sha256=ZEROS)
    except ValidationError:
        assert set(parts) & {"..", ".", ""}
    else:
        assert not set(parts) & {"..", ".", ""}


@pytest.mark.parametrize("sha256", ["", "0" * 63, "0" * 65, "G" * 64, "A" * 64, ZEROS + "\n", None, 0])
def test_file_record_with_wrong_hash_is_refused(sha256: object) -> None:
    assert "sha256" in refused(FileRecord, {"path": "a", "size_bytes": 1, "sha256": sha256})


@pytest.mark.parametrize("size", [-1, "many", None, 1.5])
def test_file_record_with_wrong_size_is_refused(size: object) -> None:
    assert "size_bytes" in refused(FileRecord, {"path": "a", "size_bytes": size, "sha256": ZEROS})


def test_dump_record_of_nothing_is_refused() -> None:
    values = {"engine": "mariadb", "database": "d", "path": "/d", "size_bytes": 0, "sha256": ZEROS}
    assert "size_bytes" in refused(DumpRecord, values)


def unsealed(manifest: BaseModel) -> dict[str, Any]:
    """A manifest's JSON as somebody may write it who does not know of the seal."""
    values: dict[str, Any] = json.loads(manifest.model_dump_json())
    del values[OWN]
    return values


@pytest.mark.parametrize(("model", "whole"), [(NightManifest, night_manifest()), (ImageManifest, image_manifest())])
class TestWhole:
    def test_manifest_survives_json(self, model: type[BaseModel], whole: BaseModel) -> None:
        assert model.model_validate_json(whole.model_dump_json()) == whole

    def test_manifest_with_unknown_key_is_refused(self, model: type[BaseModel], whole: BaseModel) -> None:
        values = unsealed(whole) | {"surprise": 1}
        assert "surprise" in refused(model, values)

    def test_manifest_of_another_kind_is_refused(self, model: type[BaseModel], whole: BaseModel) -> None:
        values = unsealed(whole) | {"kind": "template"}
        assert "kind" in refused(model, values)

    def test_manifest_without_a_field_is_refused(self, model: type[BaseModel], whole: BaseModel) -> None:
        values = unsealed(whole)
        for name in [name for name, field in model.model_fields.items() if field.is_required()]:
            assert name in refused(model, {key: value for key, value in values.items() if key != name})

    def test_manifest_with_time_without_zone_is_refused(self, model: type[BaseModel], whole: BaseModel) -> None:
        """Comparing it with a time of ours raised TypeError in the middle of a rotation."""
        values = unsealed(whole) | {"ended": "2026-11-02T02:00:00"}
        assert "ended" in refused(model, values)

    @pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "\udcff", "[" * 10000])
    def test_manifest_that_is_no_object_is_refused(self, model: type[BaseModel], whole: BaseModel, text: str) -> None:
        with pytest.raises(ValidationError):
            model.model_validate_json(text.encode("utf-8", "surrogateescape"))


def test_image_manifest_with_disk_without_checksum_is_refused() -> None:
    values = unsealed(image_manifest())
    values["files"] = []
    assert "no checksum of the file 'vda.qcow2'" in refused(ImageManifest, values)
