"""Every error GBS raises on purpose. The class is the category, and the category decides retries and exit codes.

Each class has a template and positional attributes, so that an error pickles, prints as one clear line
(what, where, what to do) and can be read by a program. Chain the original with `raise … from exc`.
"""

from typing import ClassVar

TRY_AGAIN_LATER = 75
"""EX_TEMPFAIL of sysexits.h."""


class GbsError(Exception):
    """An error with a message template filled from positional attributes."""

    template: ClassVar[str] = "{0}"
    transient: ClassVar[bool] = False
    """True when the same call may succeed later: the only thing that decides a retry."""
    exit_code: ClassVar[int] = 1
    """What a command that ends with it exits with."""

    def __str__(self) -> str:
        return self.template.format(*self.args)

    def __repr__(self) -> str:
        """What the log of a retry shows."""
        return f"{type(self).__name__}: {self}"


class ConfigError(GbsError):
    """The operator's declaration or command line is wrong: (what, where, what to do)."""

    template = "{0} ({1}): {2}"
    exit_code = 2


class InventoryError(GbsError):
    """The inventory does not validate: (file, [problem, …]). All problems at once."""

    exit_code = 2

    def __str__(self) -> str:
        path, problems = self.args
        return f"{path}: {len(problems)} problem(s)\n" + "\n".join(f"  {problem}" for problem in problems)


class UnknownName(ConfigError):
    """No such client, VM, image or night: (kind, name, known names)."""

    def __str__(self) -> str:
        kind, name, known = self.args
        listed = ", ".join(sorted(known)[:10]) or "none"
        more = f" and {len(known) - 10} more" if len(known) > 10 else ""
        return f"no {kind} named {name!r}: known are {listed}{more}"


class Unreachable(GbsError):
    """A system does not answer: (system, reason)."""

    template = "{0} is unreachable: {1}"
    transient = True
    exit_code = TRY_AGAIN_LATER


class AccessDenied(GbsError):
    """A system answers and refuses us, or is not who it should be: (system, reason, what to do)."""

    template = "{0} refused: {1}: {2}"


class CommandFailed(GbsError):
    """A tool ended with a status that is not success: (command, exit status, last lines of stderr)."""

    template = "{0} failed with status {1}: {2}"


class CommandTimedOut(CommandFailed):
    """A tool did not end before its deadline and was killed: (command, deadline in s, last lines of stderr)."""

    template = "{0} was killed after {1} s: {2}"
    transient = True
    exit_code = TRY_AGAIN_LATER


class TransferInterrupted(CommandFailed):
    """A transfer broke for a reason of the network; it resumes when called again: (command, exit status, stderr)."""

    template = "{0} was interrupted (status {1}): {2}"
    transient = True
    exit_code = TRY_AGAIN_LATER


class NotNow(CommandFailed):
    """A backup application says that it may work later, by its exit status: (command, exit status, stderr)."""

    template = "{0} cannot be done now (status {1}): {2}"
    transient = True
    exit_code = TRY_AGAIN_LATER


class SourceRefused(GbsError):
    """A source failed a gate (empty, unmounted, shrunk, mass deletion) and nothing was replaced: (source, reason)."""

    template = "source {0} is not fit to be backed up: {1}; the last good copy was kept"


class DumpFailed(GbsError):
    """A database could not be dumped or its dump does not prove itself: (database, reason)."""

    template = "dump of {0} failed: {1}"


class RestoreFailed(GbsError):
    """A database could not be loaded from its dump: (database, reason)."""

    template = "restore of {0} failed: {1}"


class HypervisorError(GbsError):
    """libvirt or QEMU refused or broke: (domain, action, reason)."""

    template = "VM {0}: {1} failed: {2}"


class DomainBusy(HypervisorError):
    """Another job holds the domain: (domain, action, reason)."""

    transient = True
    exit_code = TRY_AGAIN_LATER


class GuestAgentError(HypervisorError):
    """The guest agent is absent, hung or refused: (domain, action, reason)."""


class WindowOpen(HypervisorError):
    """A snapshot window of an earlier run is still open: (domain, action, reason)."""

    template = "VM {0}: {1} is not possible while a snapshot window is open: {2}; run: gbs reconcile"


class UnsupportedDisk(HypervisorError):
    """A disk cannot be taken by the chosen method: (domain, disk target, reason)."""

    template = "VM {0}: disk {1} cannot be backed up: {2}"


class RecoveryRefused(GbsError):
    """A recovery would overwrite or clash: (what, reason, what to do). Nothing was changed."""

    template = "recovery of {0} refused: {1}: {2}"


class RecoveredPartly(GbsError):
    """The VM runs again, but not all of it came back or answers; it was left running: (VM, KVM host, [problem, …])."""

    exit_code = 3

    def __str__(self) -> str:
        vm, host, problems = self.args
        return f"VM {vm} runs on {host}, but: " + "; ".join(problems)


class DrillFailed(GbsError):
    """A VM that was brought back for a drill does not do what it should: (VM, [problem, …])."""

    def __str__(self) -> str:
        vm, problems = self.args
        return f"VM {vm} came back in its drill, but: " + "; ".join(problems)


class NothingToRecover(GbsError):
    """There is no backup to recover from: (what, what was looked for and where)."""

    template = "nothing to recover {0} from: {1}"
    exit_code = 10


class Ambiguous(GbsError):
    """A name fits several things: (name, [candidate, …])."""

    exit_code = 2

    def __str__(self) -> str:
        name, candidates = self.args
        return f"{name!r} is ambiguous; choose one of: " + "; ".join(candidates)


class StoreError(GbsError):
    """The store refused or broke: (path, reason)."""

    template = "store {0}: {1}"


class StoreNotMounted(StoreError):
    """The store is not proven to be the right one, nothing was written: (path, reason, what to do)."""

    template = "store {0} is not the right one: {1}; nothing was written; {2}"


class ClockDoubted(StoreError):
    """This machine's clock cannot be believed, so that nothing may be given up or removed by it: (path, reason)."""

    template = "nothing is given up or removed in {0} while the clock is in doubt: {1}"


class StoreSilent(StoreError):
    """The store does not answer, as when its NFS server is gone; what touched it was ended: (path, reason)."""

    template = "store {0} does not answer: {1}; look at the NFS server and the way there"
    transient = True
    exit_code = TRY_AGAIN_LATER


class WriteLost(StoreError):
    """The store took what was written and then could not keep it: (path, reason). Nothing was published."""

    template = "store {0} lost something that was written: {1}; nothing was published, the next try writes it again"
    transient = True


class StoreFull(StoreError):
    """There is not enough room, found before or while writing: (path, needed bytes, free bytes)."""

    template = "store {0} has no room: {1} bytes needed, {2} free; nothing was replaced"


class InodesFull(StoreFull):
    """There are not enough inodes, found before writing: (path, needed, free)."""

    template = "store {0} has no inodes left: {1} needed, {2} free (df -i); nothing was replaced"


class StoreFilled(StoreFull):
    """It became full while it was written to: (path, what the system said). A quota counts, and so do inodes."""

    template = "store {0} has no room: {1}; look at df, df -i and its quotas; nothing was replaced"


class NightHeld(GbsError):
    """A night is not like the client's others and was kept aside.

    (night, reasons, night it is not like, client, who keeps that).
    """

    template = (
        "night {0} is held and nothing rotated: {1}; compared with night {2}, which {4}; "
        "the overnight copy has the changes already. See gbs list held {3}, then: gbs accept|reject {3} {0} --reason …"
    )


class Locked(GbsError):
    """Another run holds the lock: (what, holder)."""

    template = "{0} is locked by another run: {1}"
    exit_code = 11


class IntegrityError(GbsError):
    """Stored data is not what its manifest says: (path, expected, found). Never retried, never downgraded."""

    template = "{0} is damaged: expected {1}, found {2}"


class ImageUnfit(IntegrityError):
    """An image lacks what a night needs to boot from it; another image may have it: (image, what, what it has)."""

    template = "{0} does not fit the night: it has no {1}; it has {2}"


class ImageFull(GbsError):
    """A night does not fit a file system of an image: (image, file system, needed bytes, bytes there or left)."""

    template = (
        "{0}: file system {1} has no room for the night: {2} bytes needed, {3} free; the image is unchanged; "
        "choose another night (--from), or enlarge it on the VM and take a new image"
    )


class LeftBehind(GbsError):
    """Something of ours stays that needs an operator: (what, why, the exact command that undoes it)."""

    template = "{0} was left behind: {1}; undo with: {2}"


class ClientsFailed(GbsError):
    """A run ended and some of its systems failed: (failed, total, [name: reason, …], all results).

    Systems are clients, KVM hosts, devices, and the GBS server itself.
    """

    def __str__(self) -> str:
        failed, total, reasons, _ = self.args
        return f"{failed} of {total} systems failed: " + "; ".join(reasons)


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed later; errors that are not ours never are."""
    return isinstance(error, GbsError) and error.transient
