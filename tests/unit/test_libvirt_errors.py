"""libvirt's errors as ours: each row of the tables, and what is in none of them."""

from __future__ import annotations

import libvirt
import pytest

from tasks.drivers.libvirt_errors import CODES, category, translate
from tasks.errors import AccessDenied, DomainBusy, GbsError, GuestAgentError, HypervisorError, Unreachable


class Raised(libvirt.libvirtError):  # type: ignore[misc]
    """An error as libvirt raises it, without libvirt."""

    def __init__(self, code: int, domain: int, message: str) -> None:
        super().__init__(message)
        self.err = (code, domain, message, 2, None, None, None, -1, -1)


EXPECTED = {
    AccessDenied: {"AUTH_FAILED", "AUTH_CANCELLED", "AUTH_UNAVAILABLE", "ACCESS_DENIED", "OPERATION_DENIED"},
    Unreachable: {"NO_CONNECT", "INVALID_CONN", "UNKNOWN_HOST", "NO_SERVER", "RPC"},
    DomainBusy: {"OPERATION_TIMEOUT", "RESOURCE_BUSY", "BLOCK_COPY_ACTIVE"},
    GuestAgentError: {"AGENT_UNRESPONSIVE", "AGENT_UNSYNCED"},
}
ROWS = [(getattr(libvirt, f"VIR_ERR_{name}"), kind) for kind, names in EXPECTED.items() for name in sorted(names)]
ROWS += [(112, GuestAgentError), (113, GuestAgentError)]


@pytest.mark.parametrize(("code", "kind"), ROWS)
def test_category_of_each_row(code: int, kind: type[GbsError]) -> None:
    assert category(code, libvirt.VIR_FROM_QEMU) is kind
    error = translate(Raised(code, libvirt.VIR_FROM_QEMU, "said so"), "kvm1", "vm1", "snapshot")
    assert type(error) is kind
    assert "said so" in str(error)


def test_rows_of_the_test_are_the_rows_of_the_table() -> None:
    assert {code for code, _ in ROWS} == set(CODES)


@pytest.mark.parametrize("code", [libvirt.VIR_ERR_OPERATION_FAILED, libvirt.VIR_ERR_INTERNAL_ERROR, 99999, 0])
def test_unknown_code_is_a_failure_that_nobody_retries(code: int) -> None:
    error = translate(Raised(code, libvirt.VIR_FROM_QEMU, "hm"), "kvm1", "vm1", "snapshot")
    assert type(error) is HypervisorError
    assert not error.transient
    assert str(error) == "VM vm1: snapshot failed: hm"


@pytest.mark.parametrize("code", [libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_ERR_INTERNAL_ERROR])
@pytest.mark.parametrize("domain", [libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE])
def test_broken_transport_is_unreachable(code: int, domain: int) -> None:
    assert category(code, domain) is Unreachable
    assert category(code, libvirt.VIR_FROM_QEMU) is HypervisorError


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        ("Cannot recv data: Host key verification failed.: Connection reset by peer", "known_hosts"),
        (
            "Cannot recv data: No ED25519 host key is known for [127.0.0.1]:1 and you have requested strict checking",
            "known",
        ),
        ("Cannot recv data: @ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @", "known_hosts"),
        ("Cannot recv data: root@127.0.0.1: Permission denied (publickey).: Connection reset by peer", "authorise"),
        ("Failed to connect socket to '/var/run/libvirt/libvirt-sock': Permission denied", "group libvirt"),
    ],
)
def test_ssh_that_refuses_is_no_network_error(message: str, advice: str) -> None:
    error = translate(Raised(libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_FROM_RPC, message), "kvm1", "", "connect")
    assert type(error) is AccessDenied
    assert advice in str(error)
