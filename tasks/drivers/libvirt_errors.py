"""libvirt's error codes as ours: one table, and an unknown code is a failure that nobody retries."""

import re
from collections.abc import Mapping
from types import MappingProxyType

import libvirt

from tasks.errors import AccessDenied, DomainBusy, GbsError, GuestAgentError, HypervisorError, Unreachable

# https://libvirt.org/html/libvirt-virterror.html
CODES: Mapping[int, type[GbsError]] = MappingProxyType(
    {
        libvirt.VIR_ERR_AUTH_FAILED: AccessDenied,
        libvirt.VIR_ERR_AUTH_CANCELLED: AccessDenied,
        libvirt.VIR_ERR_AUTH_UNAVAILABLE: AccessDenied,
        libvirt.VIR_ERR_ACCESS_DENIED: AccessDenied,
        libvirt.VIR_ERR_OPERATION_DENIED: AccessDenied,
        libvirt.VIR_ERR_NO_CONNECT: Unreachable,
        libvirt.VIR_ERR_INVALID_CONN: Unreachable,
        libvirt.VIR_ERR_UNKNOWN_HOST: Unreachable,
        libvirt.VIR_ERR_NO_SERVER: Unreachable,
        libvirt.VIR_ERR_RPC: Unreachable,
        libvirt.VIR_ERR_OPERATION_TIMEOUT: DomainBusy,
        libvirt.VIR_ERR_RESOURCE_BUSY: DomainBusy,
        libvirt.VIR_ERR_BLOCK_COPY_ACTIVE: DomainBusy,
        libvirt.VIR_ERR_AGENT_UNRESPONSIVE: GuestAgentError,
        libvirt.VIR_ERR_AGENT_UNSYNCED: GuestAgentError,
        # By number: libvirt before 10 has no names for them.
        112: GuestAgentError,  # VIR_ERR_AGENT_COMMAND_TIMEOUT
        113: GuestAgentError,  # VIR_ERR_AGENT_COMMAND_FAILED
    }
)
# The transport reports by domain: a socket that closed is a system or an internal error from one of these.
TRANSPORT = frozenset({libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE})
_TRANSPORT_CODES = frozenset({libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_ERR_INTERNAL_ERROR})
# What ssh(1) says when it is not the network that failed.
REFUSALS: Mapping[str, str] = MappingProxyType(
    {
        r"Failed to connect socket to .*: Permission denied": "let the login user use libvirt (group libvirt)",
        r"Host key verification failed|REMOTE HOST IDENTIFICATION HAS CHANGED|No .* host key is known": (
            "compare its host key with the system's own and correct our known_hosts"
        ),
        r"Permission denied|Too many authentication failures": "authorise our key on it",
    }
)


def category(code: int, domain: int) -> type[GbsError]:
    """The class of error for a libvirt error code raised by a libvirt subsystem."""
    if domain in TRANSPORT and code in _TRANSPORT_CODES:
        return Unreachable
    return CODES.get(code, HypervisorError)


def no_connection(system: str, message: str) -> GbsError:
    """AccessDenied when the words are those of a refusal, else Unreachable."""
    for pattern, advice in REFUSALS.items():
        if re.search(pattern, message):
            return AccessDenied(system, message, advice)
    return Unreachable(system, message)


def translate(exc: libvirt.libvirtError, system: str, vm: str, action: str) -> GbsError:
    """Our error for libvirt's: `system` is what operators call the host, `vm` may be empty, `action` is what failed."""
    message = str(exc.get_error_message() or exc).strip()
    found = category(exc.get_error_code() or -1, exc.get_error_domain() or -1)
    if found is Unreachable:
        return no_connection(system, message)
    if found is AccessDenied:
        return AccessDenied(system, message, "let the login user use libvirt")
    return found(vm or f"(on {system})", action, message)
