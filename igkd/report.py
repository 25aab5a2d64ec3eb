"""The table of the claims in README.md, made from the records."""

import re

from igkd.claims import ledger
from igkd.study import Study


def claims_table(study: Study) -> str:
    """The claims as Markdown: what the paper says, the published value, ours with n, the verdict."""
    rows = ledger(study)
    rows["here"] = [here if n == "–" else f"{here} (n = {n})" for here, n in zip(rows.here, rows.n, strict=True)]
    rows["verdict"] = [each if each == "open" else f"**{each}**" for each in rows.verdict]
    rows["claim"] = rows.index + ": " + rows["the paper says"]
    return rows[["claim", "published", "here", "verdict"]].to_markdown(index=False, tablefmt="github")


def renewed(text: str, study: Study) -> str:
    """Text with the table between ``<!-- claims -->`` and ``<!-- end -->`` made anew."""
    table = claims_table(study)
    return re.sub(
        r"(<!-- claims -->\n).*?(<!-- end -->)", lambda found: f"{found[1]}{table}\n{found[2]}", text, flags=re.DOTALL
    )
