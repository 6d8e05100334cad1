"""What runs are called in the UI: `nightly of web1, db1` and not `nightly ['web1', 'db1']`, nor `nightly None`."""

from collections.abc import Callable

from prefect.runtime import flow_run

NAMED = 3


def named(parameter: str, template: str, every: str) -> Callable[[], str]:
    """The run's name: `template` filled with the names that `parameter` has, or with `every` when it has none."""

    def run_name() -> str:
        given = flow_run.parameters.get(parameter)
        names = [given] if isinstance(given, str) else list(given or ())
        listed = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
        return template.format(listed or every)

    return run_name


def of_recovery() -> str:
    """A recovery's name, which says when it only assesses."""
    given = flow_run.parameters
    what = "assess recovery of" if given.get("dry_run") else "recover"
    where = f" to {given['to']}" if given.get("to") else ""
    second = f", a second one named {given['as_name']}" if given.get("as_name") else ""
    apart = ", isolated" if given.get("isolated") else ""
    night = given.get("night") or ("its image" if given.get("instant") else "latest")
    what = f"instantly {what}" if given.get("instant") else what
    return f"{what} {given['vm']} as of {night}{where}{second}{apart}"


def of_physical() -> str:
    """The name of a physical client's recovery."""
    given = flow_run.parameters
    what = "assess recovery of" if given.get("dry_run") else "recover"
    apart = ", isolated" if given.get("isolated") else ""
    return f"{what} {given['client']} as a VM of {given['to']}, as of {given.get('night', 'latest')}{apart}"


def of_files() -> str:
    """A file recovery's name: the first paths say which."""
    given = flow_run.parameters
    paths = ", ".join(given["paths"][:NAMED]) + (" and more" if len(given["paths"]) > NAMED else "")
    what = "look for" if given.get("dry_run") else "recover"
    where = f" to {given['to']}" if given.get("to") else ""
    return f"{what} {paths} of {given['client']} as of {given.get('night', 'latest')}{where}"


def of_database() -> str:
    """A database recovery's name."""
    given = flow_run.parameters
    what = "look for" if given.get("dry_run") else "recover"
    where = f" to {given['to']}" if given.get("to") else ""
    called = f" as {given['name']}" if given.get("name") else ""
    return f"{what} {given['database']} of {given['client']} as of {given.get('night', 'latest')}{where}{called}"
