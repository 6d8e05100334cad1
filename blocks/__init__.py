"""Prefect blocks: where things are and with which identity. `prefect block register -m blocks` finds them all here.

Blocks name key files and never carry keys, so no secret of ours is in Prefect's database.
"""

from blocks.device_login import DeviceLogin
from blocks.identity import SshIdentity
from blocks.kvm_host import KvmHost
from blocks.store import PermanentStore, Store

__all__ = ["DeviceLogin", "KvmHost", "PermanentStore", "SshIdentity", "Store"]
