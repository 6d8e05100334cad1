#!/bin/bash
# The login shell of a stand-in for OpenVMS: sftp with UNIX-style paths, and of DCL what BACKUP and DELETE take here. A
# saveset is a tar archive. A file named unreadable is one that BACKUP cannot open.
set -f
[ "$SSH_ORIGINAL_COMMAND" != internal-sftp ] || exec /usr/lib/openssh/sftp-server

unix() { # DISK:[A.B]FILE.EXT as /disk/a/b/file.ext
    local spec=${1,,} disk folders file
    disk=${spec%%:*} folders=${spec#*[} file=${spec##*]}
    folders=${folders%%]*}
    [ "$folders" != 000000 ] || folders=
    echo "/$disk/${folders//.//}/$file" | tr -s /
}

read -r verb words <<<"$SSH_ORIGINAL_COMMAND"
case ${verb^^} in
BACKUP/*)
    read -r from to <<<"$words"
    tree=$(unix "${from/...]/]}") saveset=$(unix "${to%/SAVE_SET}")
    tree=${tree%\*.\*;\*}
    [[ $from == *...]\**.\**\;\** && $to == */SAVE_SET ]] || { echo "%BACKUP-F-INVSPEC, $words"; exit 44; }
    [ -d "$tree" ] || { echo "%BACKUP-F-OPENIN, error opening $from as input"; echo "-RMS-E-DNF, directory not found"; exit 44; }
    tar -C / -cf "$saveset" ".$tree"
    [ -z "$(find "$tree" -name unreadable)" ] || echo "%BACKUP-E-OPENIN, error opening unreadable as input"
    ;;
DELETE/*) rm -f -- "$(unix "${words%;*}")" ;;
PIPE) printf 'OpenVMS\r\nVAXEN1\r\nV8.4-2L1\r\nAlpha\r\n' ;;
SHOW) printf '%s of VAXEN1\r\n' "$words" ;;
*) printf '%%DCL-W-IVVERB, unrecognized command verb - check validity and spelling\r\n \\%s\\\r\n' "$verb"; exit 38 ;;
esac
