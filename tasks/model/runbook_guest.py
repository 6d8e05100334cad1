"""Steps of a runbook in the VM when it runs: until it answers, its databases, its probes."""

from collections.abc import Sequence

from tasks.model.runbook import Runbook
from tasks.model.shell_text import comment, document, word, words

DATABASE_DEADLINE_S = 300
PROBE_DEADLINE_S = 60
_WAIT = r"""
# It is known by its own host keys, which came back with its files.
for key in "$NIGHT"/data/etc/ssh/ssh_host_*_key.pub; do
    if [ -f "$key" ] && [ ! -L "$key" ]; then
        read -r kind public _ <"$key" || true
        printf 'guest %s %s\n' "$kind" "$public"
    fi
done >"$WORK/known_hosts"
[ -s "$WORK/known_hosts" ] || fail "the night has no ssh host key: go on by hand, at its console (virsh console)"
within() { # SECONDS COMMAND...: until it succeeds
    local ends=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>"$WORK/said"; do
        [ "$SECONDS" -lt "$ends" ] || { cat "$WORK/said" >&2; return 1; }
        sleep 2
    done
}
"""


def wait(runbook: Runbook) -> str:
    """Until ssh lets us in."""
    seconds = runbook.boot_deadline_s
    return f"""{_WAIT.strip()}
within {seconds} in_vm true || fail "no login after {seconds} s: look at its console (virsh console, virsh domdisplay)"
ok "it answers over ssh, with its own host key\""""


def restores(runbook: Runbook) -> str:
    """Each dump: proven by its sha256, loaded when the server takes connections."""
    texts = dict.fromkeys(
        text for one in runbook.restores for argv in (one.ready, one.argv) for text in argv if "\n" in text
    )
    names = {text: f"SCRIPT_{number}" for number, text in enumerate(texts, 1)}
    lines = [f"{name}=$(cat {document('SCRIPT', text)}\n)" for text, name in names.items()]
    for one in runbook.restores:
        lines += [
            comment(one.what),
            f"found=$(in_vm sha256sum -- {word(one.path)} | sed 's/^\\\\//')",
            f'[ "${{found%% *}}" = {one.sha256} ] || fail "the dump is not the one that was made"',
            *_ready(one.ready, names),
            f"in_vm {_words(one.argv, names)} >/dev/null || fail {word(f'{one.what} did not load')}",
            f"ok {word(f'{one.what} is loaded')}",
        ]
    return "\n".join(lines)


def _ready(argv: Sequence[str], names: dict[str, str]) -> list[str]:
    if not argv:
        return []
    return [f'within {DATABASE_DEADLINE_S} in_vm {_words(argv, names)} || fail "its server takes no connections"']


def _words(argv: Sequence[str], names: dict[str, str]) -> str:
    return " ".join(f'"${names[text]}"' if text in names else word(text) for text in argv)


def probes(runbook: Runbook) -> str:
    """Each probe of the inventory."""
    lines = []
    for probe in runbook.probes:
        lines.append(f"within {PROBE_DEADLINE_S} in_vm {words(probe.argv)} || fail {word(f'probe: {probe.words}')}")
        lines.append(f"ok {word(f'probe: {probe.words}')}")
    return "\n".join(lines)
