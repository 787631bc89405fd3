"""The documentation's Python examples run as they stand."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def examples() -> list[tuple[str, str]]:
    """Name and source of each Python block; none where the tests run without the documentation."""
    pages = sorted(DOCS.glob("*.md"))
    found = []
    for page in pages:
        found += [(f"{page.stem}-{k}", source) for k, source in enumerate(BLOCK.findall(page.read_text("utf-8")))]
    return found


EXAMPLES = examples()


@pytest.mark.skipif(not DOCS.is_dir(), reason="the tests run without the documentation")
def test_there_are_examples() -> None:
    assert len([name for name, _ in EXAMPLES if name.startswith("scan-")]) == 3


@pytest.mark.parametrize("source", [source for _, source in EXAMPLES], ids=[name for name, _ in EXAMPLES])
def test_example_runs(source: str) -> None:
    exec(compile(source, "example", "exec"), {})
