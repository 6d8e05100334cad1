"""What operators read of a drill."""

from tasks.model.drill import Drilled
from tasks.model.names import human_age, one_line


def markdown(drilled: Drilled, image: str) -> str:
    """A drill as Markdown; `image` is the address of the console's picture, or empty."""
    lines = [f"## {drilled.vm}: {drilled.outcome.value}", ""]
    lines += [f"- **{one_line(reason)}**" for reason in drilled.reasons]
    lines.append(f"- image {drilled.image or 'none'}, files of night {drilled.night or 'none'}, on {drilled.kvm_host}")
    if drilled.steps:
        lines.append(f"- recovery time {human_age(drilled.recovery_s)}")
    if drilled.data_age is not None:
        lines.append(f"- the files were {human_age(drilled.data_age.total_seconds())} old")
    lines += [f"- restored: {name}" for name in drilled.databases]
    lines += [f"- probed: {one_line(words)}" for words in drilled.probes]
    lines += [f"- dropped from its definition: {one_line(lost)}" for lost in drilled.dropped]
    if drilled.steps:
        lines += ["", "| step | took |", "|---|---|"]
        lines += [f"| {step.name} | {human_age(step.seconds)} |" for step in drilled.steps]
    lines += ["", f"![console]({image})" if image else f"No picture of its console: {one_line(drilled.unseen)}."]
    return "\n".join(lines)
