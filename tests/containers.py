"""Commands in their own PID namespace with the same host name, as in containers of one name.

Everything in the namespace dies with its first process, as a host dies with all it runs.
"""

from __future__ import annotations

import functools
import shutil
import subprocess

COMMAND = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")


@functools.cache
def are_available() -> bool:
    """Return whether this account may make namespaces."""
    return (
        bool(shutil.which(COMMAND[0]))
        and not subprocess.run([*COMMAND, "true"], capture_output=True).returncode
    )
