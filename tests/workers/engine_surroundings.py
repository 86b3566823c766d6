"""A program in place of the engine: writes what surrounds it as JSON, and waits for the end of its input."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path


def main(arguments: list[str]) -> int:
    proc = Path("/proc/self")
    command = proc.joinpath("cmdline").read_bytes().rstrip(b"\0").decode().split("\0")
    found = {
        "arguments": arguments,
        "command": command[1:],
        # Python itself sets LC_CTYPE where no language is set.
        "environment": {name: value for name, value in os.environ.items() if name != "LC_CTYPE"},
        "first_environment": proc.joinpath("environ").read_bytes().decode(),
        "files": {number: os.readlink(proc / "fd" / number) for number in os.listdir(proc / "fd")[:-1]},
        "folders": [os.getcwd(), tempfile.gettempdir()],
        "leads_session": os.getsid(0) == os.getpid(),
        "libraries": sorted({"torch", "peft"} & set(sys.modules)),
        "parent": os.getppid(),
        "umask": os.umask(0),
    }
    print(json.dumps(found), flush=True)
    sys.stdin.read()
    return 7


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
