"""What PyPI shows: README.md with links that lead somewhere from there, and the project's addresses.

Hatchling runs it when it builds (`[tool.hatch.metadata.hooks.custom]` in pyproject.toml). README.md itself keeps its
relative links, which work in a clone, on the repository's page and in the source distribution.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

PICTURE = re.compile(r"^!\[[^\]]*\]\((?!https?:)([^)]+)\)\n\n?", re.MULTILINE)
"""On a line of its own."""
LINK = re.compile(r"\[([^\]]+)\]\((?![a-z]+:|#)([^)\s]+)\)")
ELSEWHERE = """\
Paths on this page, such as `docs/handlers.md`, are those of the source distribution.

"""


def described(readme: str, home: str, version: str) -> str:
    """The text for PyPI. `home`: the repository on GitHub, or empty: then links become their text, and pictures go."""
    if not home:
        without = LINK.sub(r"\1", PICTURE.sub("", readme))
        title, _, rest = without.partition("\n\n")
        return f"{title}\n\n{ELSEWHERE}{rest}"
    readme = PICTURE.sub(lambda found: found[0].replace(f"({found[1]})", f"({home}/raw/v{version}/{found[1]})"), readme)
    return LINK.sub(rf"[\1]({home}/blob/v{version}/\2)", readme)


def addresses(home: str, version: str) -> dict[str, str]:
    """For the links beside the text."""
    if not home:
        return {}
    return {
        "Homepage": home,
        "Documentation": f"{home}/tree/v{version}/docs",
        "Changelog": f"{home}/blob/v{version}/CHANGELOG.md",
        "Issues": f"{home}/issues",
        "Source": home,
    }


class Description(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        home, version = self.config["home"], metadata["version"]
        readme = Path(self.root, "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": described(readme, home, version)}
        metadata["urls"] = addresses(home, version)
