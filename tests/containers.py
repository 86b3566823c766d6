"""PID namespaces of their own with the same host name: what containers of one name are to each other.

Whatever runs behind `COMMAND` dies with it, as a host dies with all it runs.
"""

from __future__ import annotations

import functools
import shutil
import subprocess

COMMAND = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")


@functools.cache
def may_be_made() -> bool:
    """Namespaces need a privilege that not every account has."""
    tried = [*COMMAND, "true"]
    return bool(shutil.which(COMMAND[0])) and not subprocess.run(tried, capture_output=True).returncode
