"""When a VM's image is taken again: rarely, and always for a reason that can be told."""

from datetime import datetime, timedelta

from tasks.model.manifest import ImageManifest


def due_reason(newest: ImageManifest | None, flavour: str, now: datetime, max_age_days: int) -> str | None:
    """Why the VM's image is due, or None: there is none, the disk layout changed, or it is too old
    (or of the future, after the clock was wrong).

    `flavour` is last night's; an empty one (no facts yet) says nothing about the layout.
    """
    if newest is None:
        return "there is no image yet"
    if flavour and newest.flavour and flavour != newest.flavour:
        return f"the disk layout changed: flavour {newest.flavour} became {flavour}"
    age = now - newest.instant
    if age < -timedelta(days=1):
        return f"the image is dated {newest.instant:%Y-%m-%d}, which is in the future: its age is unknown"
    if age > timedelta(days=max_age_days):
        return f"the image is {age.days} days old, the policy allows {max_age_days}"
    return None
