"""The documentation site, of the repository's own pages: see mkdocs.yml. Run by `scripts/site`, in its environment."""

from __future__ import annotations

import logging
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security-policy.md",
}
"""Pages outside of docs/, and what they are called on the site."""
API = """\
# Python API

What a handler and a producer may import, from `supervisor` or, the same, from `workq`. [Handlers](handlers.md) shows
them at work.

::: supervisor.Task
    options:
      merge_init_into_class: false
      filters: ["!^_"]
::: supervisor.Retry
::: supervisor.Reject
::: supervisor.Unavailable
::: supervisor.SoftTimeout
::: supervisor.once
::: supervisor.publisher
    options:
      show_root_toc_entry: true
      members: [Publisher, PublishError, NotSent, Unroutable, Refused, Unconfirmed, Blocked]
::: supervisor.testing
"""
STYLE = """\
/* Lines of code and tables of ours have up to 120 columns. */
.md-grid { max-width: 76rem; }
.md-typeset pre > code { font-size: .78em; }
.md-typeset table:not([class]) { font-size: .7rem; }
.md-typeset table:not([class]) td, .md-typeset table:not([class]) th { min-width: 0; padding: .5em .9em; }
/* A table without a heading. */
.md-typeset table:not([class]) th:empty { padding: 0; }
"""
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")
PICTURE = re.compile(r"^!\[(.*)\]\(((?:\w+/)*)page\.png\)$", re.MULTILINE)
ELSEWHERE = re.compile(
    r"""<(?:script|img|iframe|source|link)\b[^>]*\b(?:src|href)="?(?:https?:)?//[^>]*>|url\(['"]?https?:[^)]*"""
)
"""What a browser would load from another host. A link to click on is none of it."""


def main() -> int:
    docs = ROOT / "build" / "docs"
    shutil.rmtree(docs, ignore_errors=True)
    shutil.copytree(ROOT / "docs", docs)
    shutil.copytree(ROOT / "config", docs / "config", ignore=shutil.ignore_patterns("*.md"))
    for source, page in PAGES.items():
        shutil.copy(ROOT / source, docs / page)
        rewrite(docs / page, at_home(Path(source)))
    for page in (ROOT / "docs").rglob("*.md"):
        rewrite(docs / page.relative_to(ROOT / "docs"), at_home(page.relative_to(ROOT)))
    (docs / "api.md").write_text(API)
    (docs / "extra.css").write_text(STYLE)
    (docs / "config.md").write_text(configuration())
    decisions = sorted((docs / "decisions").glob("0*.md"))
    titles = {page: page.read_text().partition("\n")[0].removeprefix("# ") for page in decisions}
    index = "".join(f"- [{title}]({page.name})\n" for page, title in titles.items())
    (docs / "decisions" / "index.md").write_text(f"# Decisions\n\nReasons, and what else was tried.\n\n{index}")

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    config = load_config(str(ROOT / "mkdocs.yml"))
    assert config.nav is not None
    config.nav[-1] = {"Decisions": ["decisions/index.md", *(f"decisions/{page.name}" for page in decisions)]}
    try:
        build(config)
    except Abort as error:
        print(f"site: {error}", file=sys.stderr)
        return 1
    return verdict(Path(config.site_dir))


def at_home(page: Path) -> Callable[[re.Match[str]], str]:
    """For a page of the repository: where its links lead on the site."""
    site = Path(PAGES.get(str(page), "") or page.relative_to("docs"))
    up = "../" * (len(site.parts) - 1)

    def link(found: re.Match[str]) -> str:
        path, anchor = found[1], found[2] or ""
        target = (ROOT / page.parent / path).resolve().relative_to(ROOT)
        if str(target) in PAGES:
            return f"]({up}{PAGES[str(target)]}{anchor})"
        if target.parts[0] == "docs":
            inside = target.relative_to("docs")
            return f"]({up}{inside / 'index.md' if (ROOT / target).is_dir() else inside}{anchor})"
        if target.parts[0] == "config":
            if (ROOT / target).is_dir():
                return f"]({up}config.md{'#' + target.name if len(target.parts) > 1 else ''})"
            return f"]({up}{target}{anchor})"
        raise SystemExit(f"site: {page} has a link to {target}, which is not on the site")

    return link


def rewrite(page: Path, link: Callable[[re.Match[str]], str]) -> None:
    text = LINK.sub(link, page.read_text())
    # The browser shows one of the two, by the reader's choice of colours.
    page.write_text(PICTURE.sub(r"![\1](\2page.png#only-light)\n![\1](\2page-dark.png#only-dark)", text))


def configuration() -> str:
    """A page of the files in config/, by directory, with what the first comment in each says of it."""
    parts = ["# Configuration files\n\nExamples that are used as they are, and tested.\n"]
    files = sorted(path for path in (ROOT / "config").rglob("*") if path.is_file() and path.suffix != ".md")
    place = None
    for path in sorted(files, key=lambda path: (len(path.parts), path)):
        if path.parent != place:
            place = path.parent
            parts.append(f"\n## {place.name}\n\n")
        parts.append(f"- [{path.name}]({path.relative_to(ROOT)})\n")
    toml = (ROOT / "config" / "workq.toml").read_text()
    parts.append(f"\n## workq.toml\n\n```toml\n{toml}```\n")
    return "".join(parts)


def verdict(site: Path) -> int:
    """0, or 1 when a page would load something from elsewhere."""
    foreign = [
        f"{path.relative_to(site)}: {found[0][:120]}"
        for path in sorted([*site.rglob("*.html"), *site.rglob("*.css")])
        for found in ELSEWHERE.finditer(path.read_text())
    ]
    for line in foreign:
        print(f"site: loaded from elsewhere: {line}", file=sys.stderr)
    if not foreign:
        print(f"site: {sum(1 for _ in site.rglob('*.html'))} pages in {site.relative_to(ROOT)}")
    return 1 if foreign else 0


if __name__ == "__main__":
    sys.exit(main())
