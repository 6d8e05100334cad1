#!/bin/bash
# The login shell of a stand-in for Windows with Cygwin's sshd: bash, rsync without ACLs and xattrs, a powershell.exe.
PATH=/standin/windows/bin:/usr/bin:/bin
export PATH
exec /bin/bash -c "$SSH_ORIGINAL_COMMAND"
