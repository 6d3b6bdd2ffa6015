"""A tiny base with a chat template, and what it is asked."""

from pathlib import Path
from typing import Any

from tests.support.tiny import edit_gguf

END = "<|endoftext|>"  # the only control token of the tiny vocabulary
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]\n{{ m.content }}<|endoftext|>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
QUESTION: list[dict[str, Any]] = [
    {"role": "system", "content": "Answer as a doctor of the river would, in a few words and without a number."},
    {"role": "user", "content": "What is the heart?"},
]


def chatty(base: Path, target: Path, template: str | None = TEMPLATE) -> Path:
    """`base` with a chat template."""
    return edit_gguf(base, target, {"tokenizer.chat_template": template})
