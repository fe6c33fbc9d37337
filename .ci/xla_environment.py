"""Makes the virtual environment argv[1], in which torch-xla is, and installs this clone into it.

torch and torch-xla take minutes and 7 GB, so they are installed once into a folder outside the clone, named after
what `constraints-xla.txt` asks for and the Python in use; the clone's environment holds the rest and looks there.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

CLONE = Path(__file__).resolve().parents[1]
REQUIREMENTS = CLONE / "constraints-xla.txt"
PIP = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")


def main(target: Path) -> None:
    """The heavy folder, made if it is not there; then the clone's environment anew."""
    heavy = cache_folder()
    build_once(heavy)
    venv.create(target, clear=True, with_pip=True, symlinks=True)
    [packages] = (target / "lib").glob("python*/site-packages")
    [shared] = (heavy / "lib").glob("python*/site-packages")
    (packages / "torch_xla.pth").write_text(f"{shared}\n")
    command = (target / "bin" / "python", *PIP, "--constraint", REQUIREMENTS, "--editable", f"{CLONE}[test,xla]")
    subprocess.run(command, check=True)


def cache_folder() -> Path:
    """Where the pinned pair of these requirements and this Python lives."""
    lines = [line.partition("#")[0].strip() for line in REQUIREMENTS.read_text().splitlines()]
    key = "\n".join([sys.implementation.cache_tag, *filter(None, lines)])
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "tp-harness" / f"xla-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def build_once(folder: Path) -> None:
    """Install into a folder beside it and rename that when it is whole; a second caller waits for the first."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return
        print(f"{folder}: installing torch-xla, about two minutes and 7 GB", flush=True)
        unfinished = Path(f"{folder}.part")
        shutil.rmtree(unfinished, ignore_errors=True)
        venv.create(unfinished, with_pip=True, symlinks=True)
        subprocess.run((unfinished / "bin" / "python", *PIP, "--no-cache-dir", "-r", REQUIREMENTS), check=True)
        unfinished.rename(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
