"""The last line of each page of docs/: links to the index and to the pages before and after it.

    python -m harness.tools.pages           # write these lines again after docs/index.md changed

``docs/index.md`` decides which pages there are and their order.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from harness import places

INDEX = "index.md"
_LINK = re.compile(r"^- \[([^]]+)\]\(([\w-]+\.md)\)", re.MULTILINE)
_FOOTER = re.compile(r"\n\[Documentation\]\(index\.md\).*\n\Z")


def pages(docs: Path = places.DOCS) -> dict[str, str]:
    """Return the title of each page by its file name, in the order of the index.

    An installed gate has no documents; there it is empty.
    """
    index = docs / INDEX
    if not index.is_file():
        return {}
    return {name: title for title, name in _LINK.findall(index.read_text(encoding="utf-8"))}


def footer(name: str, docs: Path = places.DOCS) -> str:
    """Return the footer of page *name*, with a blank line before it; empty for a page that is not
    in the index.
    """
    titles = pages(docs)
    if name not in titles:
        return ""
    names = list(titles)
    position = names.index(name)
    links = [f"[Documentation]({INDEX})"]
    if position > 0:
        before = names[position - 1]
        links.append(f"before: [{titles[before]}]({before})")
    if position + 1 < len(names):
        after = names[position + 1]
        links.append(f"next: [{titles[after]}]({after})")
    return f"\n{' | '.join(links)}\n"


def main(docs: Path = places.DOCS) -> int:
    """Write the footer of every page again; return the exit status."""
    for name in pages(docs):
        path = docs / name
        text = path.read_text(encoding="utf-8")
        body = _FOOTER.sub("", text).rstrip("\n") + "\n"
        written = body + footer(name, docs)
        if written != text:
            path.write_text(written, encoding="utf-8")
            print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
