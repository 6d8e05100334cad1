"""Facts: md arrays (mdadm, sysfs)."""

from tasks.model.fact import FactRow


class MdArray(FactRow):
    """An md array by its kernel name; `members` in the order of their roles, by kernel name.

    `devices` is how many it is made for; `layout` is md's own number (raid5: 2 is left-symmetric; raid10: 258 is two
    near copies). A container (imsm, ddf) has the level `container`, an array that is not started has none.
    """

    device: str
    level: str = ""
    devices: int = 0
    metadata: str = ""
    uuid: str = ""
    name: str = ""
    chunk_bytes: int = 0
    layout: int = 0
    members: tuple[str, ...] = ()
    spares: tuple[str, ...] = ()


def parse_md_arrays(text: str) -> tuple[MdArray, ...]:
    """The output of MD_ARRAYS: for each array `MD <kernel name> <chunk bytes> <layout>`, then what mdadm exports."""
    found: list[tuple[list[str], dict[str, str]]] = []
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if line.startswith("MD ") and len(line.split()) == 4:
            found.append((line.split(), {}))
        elif found and equals:
            found[-1][1][key.strip()] = value.strip()
    return tuple(_array(device, chunk, layout, values) for (_, device, chunk, layout), values in found)


def _array(device: str, chunk: str, layout: str, values: dict[str, str]) -> MdArray:
    roles = {
        path.removeprefix("/dev/"): values.get(f"{key.removesuffix('_DEV')}_ROLE", "")
        for key, path in values.items()
        if key.startswith("MD_DEVICE_") and key.endswith("_DEV")
    }
    members = [name for name, role in roles.items() if role.isdecimal()]
    return MdArray(
        device=device,
        level=values.get("MD_LEVEL", ""),
        devices=int(values.get("MD_DEVICES", "0")),
        metadata=values.get("MD_METADATA", ""),
        uuid=values.get("MD_UUID", ""),
        name=values.get("MD_NAME", values.get("MD_DEVNAME", "")),
        chunk_bytes=int(chunk),
        layout=int(layout),
        members=tuple(sorted(members, key=lambda name: int(roles[name]))),
        spares=tuple(sorted(name for name, role in roles.items() if role == "spare")),
    )


MD_ARRAYS = """for md in /sys/block/md*/md; do
[ -d "$md" ] || continue
device=${md%/md} device=${device##*/}
echo "MD $device $(cat "$md/chunk_size" 2> /dev/null || echo 0) $(cat "$md/layout" 2> /dev/null || echo 0)"
mdadm --detail --export "/dev/$device" || exit
done"""
"""By kernel name, as lsblk names them. Where there is no array, mdadm is not needed to know it."""
