"""What a memory is worth, as a page. Knows nothing of how anything was measured."""

import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memdec_edge.files import write_text

PAGE = "report.html"


def write_report(found: Mapping[str, Any], out: Path) -> Path:
    """Write report.html into the folder `out`, and return its path. Raises OutputError."""
    body = html.escape(json.dumps(dict(found), indent=1, ensure_ascii=False))
    write_text(out / PAGE, f"<!doctype html><meta charset=utf-8><title>{PAGE}</title><pre>{body}</pre>\n")
    return out / PAGE
