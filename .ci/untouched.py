"""Fails if the installed gate differs from its wheel: a run may write nothing into it."""

import base64
import hashlib
import sys
from importlib import metadata
from pathlib import Path

distribution = metadata.distribution("quantized-clip-gate")
package = Path(str(distribution.locate_file("harness"))).resolve()
expected = {}
for name in distribution.files or ():
    path = Path(str(name.locate())).resolve()
    if package in path.parents and path.parent.name != "__pycache__" and name.hash:
        expected[path] = name.hash.value
installed = {}
for path in package.rglob("*"):
    if path.is_file() and path.parent.name != "__pycache__":
        digest = hashlib.sha256(path.read_bytes()).digest()
        installed[path] = base64.urlsafe_b64encode(digest).decode().rstrip("=")
changed = sorted(str(path) for path, _ in expected.items() ^ installed.items())
if not expected or changed:
    sys.exit(f"{package} is not what the wheel brought: {changed or 'no files'}")
print(f"the {len(expected)} files of {package} are those of the wheel")
