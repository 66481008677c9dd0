"""A compiler launcher for CMake: takes over objects of the checkout's own build instead of compiling them again.

    compiled_once.py COMPILER ARGUMENT...

`$FASTMIX_TEST_OBJECTS` names the JSON file that `offer` wrote. An object is taken over if the command is the same but
for the folders; that the sources are the same is for the caller to see to.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path


def offer(checkout: Path, ninja: str, file: Path) -> int:
    """Write to `file` the objects in `checkout`'s build folder that are newer than all sources; how many there are."""
    sources = [path for folder in ("csrc", "kernels") for path in (checkout / folder).rglob("*.[ch]*")]
    newest = max(path.stat().st_mtime for path in [checkout / "CMakeLists.txt", *sources])
    objects = {}
    for work in checkout.glob("build/cmake-*"):
        listing = [ninja, "-C", str(work), "-t", "commands", "_C.so"]
        commands = subprocess.run(listing, capture_output=True, text=True, check=True).stdout
        for words in map(str.split, commands.splitlines()):
            if "-c" in words:
                made = work / words[words.index("-o") + 1]
                if made.exists() and made.stat().st_mtime > newest:
                    objects[key(words, checkout)] = str(made)
    file.write_text(json.dumps(objects))
    return len(objects)


def key(words: list[str], root: Path) -> str:
    return " ".join(words).replace(str(root), "")


def main() -> int:
    words = sys.argv[1:]
    objects = json.loads(Path(os.environ["FASTMIX_TEST_OBJECTS"]).read_text())
    # CMake compiles in <root>/build/cmake-<platform>.
    made = objects.get(key(words, Path.cwd().parents[1])) if "-c" in words else None
    if made is None:
        return subprocess.run(words).returncode
    shutil.copyfile(made, words[words.index("-o") + 1])
    return 0


if __name__ == "__main__":
    sys.exit(main())
