#!/bin/sh
# A backup application that is not GBS's: tars in $VAULT_HOME, a key, a listing for people, exit statuses of its own.
# 0 done · 4 done, with a remark · 8 the drive is busy, try later · 10 not what it was · 12 medium full · 16 wrong key · 20 other
umask 077
[ "$VAULT_KEY" = "open sesame, vault" ] || { echo "VLT0016E key $VAULT_KEY is refused" >&2; exit 16; }
[ ! -e "$VAULT_HOME/busy" ] || { echo "VLT0008W drive in use" >&2; exit 8; }
verb=$1 client=$2 night=$3 folder=$4
case $verb in
list)
    cd "$VAULT_HOME/$client" 2>/dev/null || exit 0
    for file in *.tar; do [ ! -e "$file" ] || echo "  SAVED  ${file%.tar}   $(stat -c %s "$file") bytes  GOOD"; done ;;
backup)
    mkdir -p "$VAULT_HOME/$client" && cd "$VAULT_HOME/$client" || exit 20
    tar --acls --xattrs --xattrs-include='*' --sparse --numeric-owner -C "$folder" -cf "$night.part" . 2>"$night.log" ||
        { cat "$night.log" >&2; rm -f "$night.part"; grep -q 'Wrote only\|No space left' "$night.log" && exit 12; exit 20; }
    sha256sum <"$night.part" >"$night.sum" && mv "$night.part" "$night.tar" || exit 12
    [ ! -s "$night.log" ] || { cat "$night.log" >&2; exit 4; } ;;
restore)
    tar --acls --xattrs --xattrs-include='*' --numeric-owner -C "$folder" -xpf "$VAULT_HOME/$client/$night.tar" || exit 20 ;;
verify)
    cd "$VAULT_HOME/$client" && { sha256sum --quiet --check "$night.sum" <"$night.tar" || exit 10; } ;;
forget)
    rm "$VAULT_HOME/$client/$night.tar" "$VAULT_HOME/$client/$night.sum" || exit 20 ;;
*)
    exit 20 ;;
esac
