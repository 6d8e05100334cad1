#!/bin/sh
# The login shell of a stand-in for Solaris or HP-UX: sh, and first in PATH the programs as that system has them.
PATH=/standin/$1/bin:/usr/bin:/bin:/usr/sbin:/sbin
export PATH
exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"
