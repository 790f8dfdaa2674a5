"""Releases of ModelOpt, and what they changed for CLIP.

    # in a release's environment: baselines/versions/<release>.json
    python -m harness.tools.versions measure
    # there: is what differs from the newest measured release expected?
    python -m harness.tools.versions check
    # anywhere: what changes from one measured release to another
    python -m harness.tools.versions diff 0.44 0.47
    python -m harness.tools.versions table           # docs/versions.md from all measurements

`differences` reads the expected ones, `overlay` lays them over a baseline before it is compared,
`measurement` runs and keeps a release, `check` compares, `table` writes.
"""

from __future__ import annotations
