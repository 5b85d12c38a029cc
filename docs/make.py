"""Makes docs/machines.md from the tables of the machines; with --check, says whether it is as it should be, and looks for dead links."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from ipos.pool import dispute, handover, holder, job, lease, placement, quorum, task

HERE = Path(__file__).parent
TARGET = HERE / "machines.md"


def text() -> str:
    out = ["# The machines\n\nMade by `make docs` from the tables in `src/ipos/pool`; do not edit.\n"]
    machines = (
        (lease, lease.lease), (holder, holder.holder), (task, task.task), (job, job.job), (handover, handover.handover),
        (quorum, quorum.quorum), (dispute, dispute.dispute),
    )  # fmt: skip
    for module, machine in machines:
        assert module.__doc__ is not None
        out.append(f"## {machine.name}\n\n{module.__doc__.strip()}\n\n```mermaid\n{machine.drawing()}```\n")
    assert placement.__doc__ is not None
    out.append(f"## placement\n\n{placement.__doc__.strip()}\n\n```mermaid\n{placement.drawing()}```\n")
    return "\n".join(out)


def dead_links() -> list[str]:
    """Relative links of our pages that lead nowhere."""
    found: list[str] = []
    root = HERE.parent
    pages = [p for folder in ("docs", "src", "vectors") for p in (root / folder).rglob("*.md")]
    for page in [root / "README.md", *pages]:
        for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
            if "://" not in link and not (page.parent / link).exists():
                found.append(f"{page.relative_to(root)}: {link}")
    return found


def main() -> int:
    if "--check" not in sys.argv:
        TARGET.write_text(text())
        return 0
    problems = dead_links()
    if not TARGET.exists() or TARGET.read_text() != text():
        problems.append("docs/machines.md is not what the tables say: make docs")
    print("\n".join(problems), end="\n" if problems else "")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
