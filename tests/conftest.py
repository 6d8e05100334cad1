"""The order of files: what takes longest goes first, so that the workers of `make test` end together."""

from collections.abc import Sequence

import pytest

LONGEST_FIRST = (
    "test_spine.py",
    "test_nfs.py",
    "test_engine_contract.py",
    "test_snaplive_crash.py",
    "test_backup_api.py",
    "test_rebuild.py",
    "test_uefi_guest.py",
    "test_image_update.py",
    "test_adoption.py",
    "test_recovery_put.py",
    "test_appliance.py",
    "test_methods.py",
    "test_snaplive.py",
    "test_snaplive_faults.py",
    "test_engine_s3.py",
    "test_instant.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the tests by file; within a file they keep their order."""
    items.sort(key=lambda item: _rank(item.path.name, LONGEST_FIRST))


def _rank(name: str, first: Sequence[str]) -> int:
    return first.index(name) if name in first else len(first)
