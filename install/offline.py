"""Installs a bundle on a host without internet: checks every digest, then sets up from the bundle's wheels alone.

Reads: the unpacked bundle beside it (where it lies as install.py). Writes: FOLDER: the checkout, .venv/ and .tools/.
Standard library only, and nothing of Brim: until the digests are checked, the bundle is only bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

SCHEMA = 1


def main(argv: list[str]) -> int:
    if len(argv) != 1:
        print("usage: sh install.sh FOLDER [PYTHON]", file=sys.stderr)
        return 2
    bundle, folder = Path(__file__).resolve().parent, Path(argv[0]).resolve()
    try:
        manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
        problem = wrong(bundle, manifest, sys.version_info[:2]) or occupied(folder)
    except (OSError, ValueError) as error:
        problem = f"the bundle cannot be read: {error}; unpack it again"
    if problem is not None:
        print(f"install: {problem}", file=sys.stderr)
        return 2
    return unpack(bundle, manifest, folder)


def wrong(bundle: Path, manifest: dict[str, object], python: tuple[int, int]) -> str | None:
    """Why this bundle must not be installed; None if it may."""
    if manifest.get("schema") != SCHEMA:
        return f"manifest schema {manifest.get('schema')} is not {SCHEMA}: use the install.sh that came with the bundle"
    if manifest["python"] != f"{python[0]}.{python[1]}":
        wanted = manifest["python"]
        return (
            f"the bundle is for Python {wanted}, this is {python[0]}.{python[1]}: sh install.sh FOLDER python{wanted}"
        )
    files = manifest["files"]
    assert isinstance(files, dict)
    for name, expected in files.items():
        path = bundle / name
        if not path.is_file():
            return f"{name} is missing: unpack the bundle again"
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                return f"{name} is damaged (its sha256 is not the manifest's): copy the bundle again"
    return None


def occupied(folder: Path) -> str | None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        return f"{folder} is not an empty folder: name one that is empty or does not exist yet"
    return None


def unpack(bundle: Path, manifest: dict[str, object], folder: Path) -> int:
    shutil.copytree(bundle / "checkout", folder, dirs_exist_ok=True)
    if (bundle / "libpython").is_dir():
        shutil.copytree(bundle / "libpython", folder / ".tools" / "python")
    words = [sys.executable, "-m", "install", "ensure", "--python", sys.executable]
    words += ["--for", str(manifest["target"]), "--device", str(manifest["device"])]
    if manifest["system_site_packages"]:
        words.append("--system-site-packages")
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "PYTHON"))}
    env.update(PIP_NO_INDEX="1", PIP_FIND_LINKS=str(bundle / "wheels"), PIP_CONFIG_FILE=os.devnull)
    return subprocess.run(words, cwd=folder, env=env).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
