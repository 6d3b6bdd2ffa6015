"""Chat templates that tests render: our own small ones, and those of many families from the package registry."""

import subprocess
import sys
import zipfile
from pathlib import Path

CHATML = """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] \
+ '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
OWN = {
    "chatml": CHATML,
    "blanks": """{{ bos_token }}
{%- for message in messages if message.content is string -%}
    {%- set role = 'model' if message.role == 'assistant' else message.role | title -%}
    <|{{ role }}|>
    {{- message['content'] | trim ~ eos_token }}
{% endfor -%}
<|model|>""",
    "macros": """{% macro turn(m) %}[{{ m.role | upper }}] {{ caller() }}{{ m.content }} [/]{% endmacro %}
{% for message in messages %}{% call turn(message) %}#{{ loop.index }}: {% endcall %}{% endfor %}""",
    "think": """{% for m in messages %}{% set parts = m.content.split('</think>') %}\
<{{ m.role }}>{{ parts[-1].lstrip('\n') | replace('\t', '    ') }}\
{% if m.reasoning_content is defined %}({{ m.reasoning_content[:5] }}){% endif %}</{{ m.role }}>
{%- endfor %}{% set ns = namespace(n=0) %}\
{% for m in messages %}{% set ns.n = ns.n + m.content | length %}{% endfor %}{{ ns.n }}\
 {{ ', '.join(['a', messages[0].content]) }}\
{% if tools %}{{ tools | tojson(indent=2) }}{% endif %}""",
    "generation": """{% for m in messages %}{% if m.role == 'assistant' %}\
{% generation %}{{ m.content }}{% endgeneration %}\
{% elif loop.index > 9 %}{% break %}{% else %}{{ m.content }}{{ '\\n' * 2 }}{% endif %}{% endfor %}""",
}
PACKAGE = "axolotl==0.19.0"  # a wheel of 1.6 MB with the templates of 36 families, Apache-2.0


def families(folder: Path) -> dict[str, str]:
    """Name -> template of the families that PACKAGE carries; none where no package registry answers."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "-q",
        "-d",
        str(folder),
        PACKAGE,
    ]
    if subprocess.run(command, capture_output=True, timeout=120).returncode:
        return {}
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        found = [Path(name) for name in wheel.namelist() if name.endswith(".jinja")]
        return {path.stem: wheel.read(str(path)).decode() for path in found}
