"""Addresses of Ray clusters (``--cluster``), looked at without Ray and without torch."""

from __future__ import annotations

import importlib.util

from harness.errors import UsageError

LOCAL = "local"
FIX = "Give the address of a Ray head (HOST:PORT, `ray start --head` prints it), or local."


def check(address: str) -> None:
    """Refuse an address that cannot be used; a head that does not answer is found when the
    evaluation starts.

    Raises:
        UsageError: the address has no usable form, or Ray is not installed.
    """
    host, _, port = address.rpartition(":")
    is_port = port.isascii() and port.isdigit() and 0 < int(port) < 2**16
    if address != LOCAL and not (host and is_port and "/" not in host):
        raise UsageError(f"--cluster {address}", "is not an address", FIX)
    if importlib.util.find_spec("ray") is None:
        fix = "Install the extra 'cluster': pip install 'quantized-clip-gate[cluster]'."
        raise UsageError(f"--cluster {address}", "needs Ray, which is not installed", fix)
