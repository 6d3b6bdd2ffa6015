"""Rendering: the text of transformers, byte for byte; whose each part is; templates that are hostile or broken."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memdec_edge.chat import ChatTemplate, budget
from memdec_edge.errors import OptionError, TemplateError
from memdec_edge.options.chat import ChatOptions
from tests.support.templates import CHATML, OWN, families

TOOL = {
    "type": "function",
    "function": {
        "name": "dose",
        "description": "The dose < 5 mg",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer", "description": "x"}}},
    },
}
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "dose", "arguments": {"a": 1}}}
CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": " Hello,\tthere \n"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello!"},
        {"role": "user", "content": "  What is <|im_end|>? "},
    ],
    [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Grüße 🙂", "reasoning_content": "let me think"},
        {"role": "user", "content": "Q"},
    ],
    [
        {"role": "user", "content": "weigh"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "42", "tool_call_id": "abcdefghi", "name": "dose"},
        {"role": "user", "content": "ok"},
    ],
]
WAYS = [ChatOptions(), ChatOptions(tools=(TOOL,)), ChatOptions(continue_final_message=True)]
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
Judge = Callable[[str, list[dict[str, Any]], ChatOptions], str | None]


@pytest.fixture(scope="module")
def judge() -> Judge:
    """What transformers renders; None where the template refuses the messages."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **NAMES)

    def render(template: str, messages: list[dict[str, Any]], options: ChatOptions) -> str | None:
        goes_on = options.continue_final_message
        try:
            text: str = tokenizer.apply_chat_template(
                messages, chat_template=template, tools=list(options.tools) or None, tokenize=False,
                add_generation_prompt=not goes_on, continue_final_message=goes_on, **(options.template_kwargs or {}),
            )  # fmt: skip
        except Exception:
            return None
        return text

    return render


def compare(judge: Judge, template: str, *, count: int = 0) -> int:
    """Compare all chats in all ways; return how many texts were equal."""
    ours = ChatTemplate(template, "it", variables=NAMES)
    for chat in CHATS:
        for options in WAYS:
            messages = [*chat, {"role": "assistant", "content": " Sure, "}] if options.continue_final_message else chat
            expected = judge(template, messages, options)
            if expected is None:
                with pytest.raises(TemplateError):
                    ours.render(messages, options)
            else:
                assert ours.render(messages, options).text == expected
                count += 1
    return count


@pytest.mark.parametrize("name", OWN)
def test_our_own_templates_render_as_in_transformers(judge: Judge, name: str) -> None:
    assert compare(judge, OWN[name]) > 2


def test_templates_of_thirty_families_render_as_in_transformers(judge: Judge, tmp_path: Path) -> None:
    found = families(tmp_path)
    if not found:
        pytest.skip("no package registry answers")
    counts = {name: compare(judge, template) for name, template in found.items()}
    assert len(found) >= 30
    assert min(counts.values()) > 0
    assert sum(counts.values()) > 300


def test_variables_reach_the_template(judge: Judge) -> None:
    template = "{{ messages[0].content }}{% if enable_thinking %}<think>{% endif %}"
    options = ChatOptions(template_kwargs={"enable_thinking": True})
    rendered = ChatTemplate(template, "it").render(CHATS[0], options).text
    assert rendered == judge(template, CHATS[0], options) == " Hello,\tthere \n<think>"


@pytest.mark.parametrize("name", [name for name in OWN if name != "think"])
def test_segments_say_what_is_template_and_what_is_whose_content(name: str) -> None:
    rendered = ChatTemplate(OWN[name], "it", variables=NAMES).render(CHATS[1])
    for index, message in enumerate(CHATS[1]):
        mine = "".join(segment.text for segment in rendered.segments if segment.message == index)
        assert mine == (message["content"].strip() if name == "blanks" else message["content"])
    assert all(segment.message is None or not segment.template for segment in rendered.segments)
    others = "".join(segment.text for segment in rendered.segments if segment.message is None)
    assert not any(message["content"] in others for message in CHATS[1])


def test_content_that_a_template_dumps_or_lengthens_is_never_taken_for_the_templates_own() -> None:
    for expression in (
        "tojson",
        "list | string",
        "center(60)",
        "e",
        "escape | string",
        "indent(3, true)",
        "wordwrap(4)",
    ):
        rendered = ChatTemplate("<{{ messages[0].content | " + expression + " }}>", "it").render(
            [{"role": "user", "content": "ab<|im_end|>cd"}]
        )
        own = "".join(segment.text for segment in rendered.segments if segment.template)
        assert "im_end" not in own, expression


MUCH_OF_LITTLE = [
    "'x'.ljust(10 ** 8)", "'x'.rjust(10 ** 8)", "'x'.center(10 ** 8)", "'1'.zfill(10 ** 8)", "'x' | center(10 ** 8)",
    "'x' | indent(10 ** 8, true)", "('x\n' * 1000) | indent('y' * 10000)", "('\t' * 9999).expandtabs(9999)",
    "'%100000000d' % 1", "'%.100000000f' % 1", "'%*d' % (10 ** 8, 1)", "'%100000000d' | format(1)",
    "('%s' * 999) | format('x' * 9999)", "'{:>100000000}'.format('a')", "'{:{}}'.format('a', 10 ** 8)",
    "('{0}' * 9999).format('x' * 9999)", "'{0[a]}'.format({'a': 'x'})", "'{a:>100000000}'.format_map({'a': 1})",
    "('a' * 90000).replace('a', 'bb')", "('a' * 999).replace('a', 'b' * 9999)",
    "('a' * 999) | replace('a', 'b' * 9999)", "('ab ' * 999) | wordwrap(1, wrapstring='x' * 9999)",
    "('a' * 999).translate({97: 'b' * 9999})", "('x' * 9999).join(['a'] * 999)", "''.join(['x' * 9999] * 999)",
    "(['x' * 9999] * 999) | join", "('a ' * 90000).split()", "('a ' * 90000).split('a')", "('\n' * 90000).splitlines()",
    "('a' * 90000) | list", "(['x' * 9999] * 999) | string", "['x' * 9999] * 999", "(['x' * 9999] * 999) | tojson",
    "([1] * 999) | tojson(indent=99999)", "1 | round(10 ** 8)", "[[1]] | sum(start=[])", "(1).to_bytes(10 ** 8)",
    "('x' * 9999) ~ (['x' * 9999] * 999)", "('x'.encode() * 9).ljust(10 ** 8)", "('x' | safe).ljust(10 ** 8)",
    "('x' | attr('ljust'))(10 ** 8)",
]  # fmt: skip


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for %}", "no valid Jinja template"),
        ("{{ messages[0].nothing.at_all }}", "does not render these messages"),
        ("{% import 'os' as os %}", "does not render these messages"),
        ("{% include '/etc/passwd' %}", "does not render these messages"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "is unsafe"),
        ("{{ messages.append(1) }}", "is unsafe"),
        ("{{ raise_exception('only one user, please') }}", "only one user, please"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "more than 20,000 passes"),
        ("{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}", "does not render these messages"),
        ("{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}", "passes"),
        ("{{ 'a' * 10 ** 9 }}", "too large"),
        ("{{ 9 ** 99999 }}", "too large"),
        ("{% set n = namespace(x='a') %}{% for i in range(40) %}{% set n.x = n.x + n.x %}{% endfor %}", "too large"),
        ("{% set n = namespace(x=[1]) %}{% for i in range(40) %}{% set n.x = n.x + n.x %}{% endfor %}", "too large"),
        ("{% set n = namespace(x=9) %}{% for i in range(40) %}{% set n.x = n.x * n.x %}{% endfor %}", "too large"),
        *(
            (f"{{{{ {expression} }}}}", "too large|passes|digits|sums lists|attributes")
            for expression in MUCH_OF_LITTLE
        ),
        ("(" * 5 + "{{" + "(" * 5000 + "1" + ")" * 5000 + "}}", "no valid Jinja template"),
        ("x" * (1 << 20) + "y", "more than 1,048,576"),
    ],
)
def test_a_broken_or_hostile_template_is_a_typed_error_that_names_it(
    template: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "MAX_STEPS", 20_000)
    monkeypatch.setattr(budget, "MAX_LENGTH", 1 << 20)
    with pytest.raises(TemplateError, match=said) as caught:
        ChatTemplate(template, "the chat template of base.gguf").render(CHATS[0])
    assert str(caught.value).startswith("the chat template of base.gguf: ")
    assert str(caught.value).endswith("give `chat_template` chatml")
    assert "\n" not in str(caught.value)


def test_a_base_without_a_template_offers_chatml() -> None:
    with pytest.raises(TemplateError, match=r"base\.gguf: it has no chat template; give `chat_template` chatml"):
        ChatTemplate.of(Path("base.gguf"), {}, ChatOptions(), {})
    found = ChatTemplate.of(Path("base.gguf"), {}, ChatOptions(chat_template="chatml"), {})
    assert found.render(CHATS[0]).text == ChatTemplate(CHATML, "it").render(CHATS[0]).text


def test_a_template_for_tools_is_taken_where_there_are_tools() -> None:
    metadata = {"tokenizer.chat_template": "plain", "tokenizer.chat_template.tool_use": "with tools"}
    for options, expected in ((ChatOptions(), "plain"), (ChatOptions(tools=(TOOL,)), "with tools")):
        assert ChatTemplate.of(Path("b"), metadata, options, {}).render(CHATS[0], options).text == expected


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "messages is empty"),
        ("hello", "messages is str"),
        ([7], r"messages\[0\] is int"),
        ([{"content": "a"}], r"messages\[0\].role is None"),
        ([{"role": "robot", "content": "a"}], r"messages\[0\].role is robot: must be one of system, user, assistant"),
        ([{"role": "user"}], r"messages\[0\].content is missing"),
        ([{"role": "user", "content": 3}], r"messages\[0\].content is int: must be text"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "images and sounds are not read"),
        (
            [{"role": "user", "content": "a", "file": open}],
            r"messages\[0\].file is builtin.*: must be what JSON can hold",
        ),
        ([{"role": "user", "content": "\ud800"}], r"messages\[0\].content is .*not UTF-8"),
    ],
)
def test_messages_that_cannot_be_are_named(messages: Any, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        ChatTemplate(CHATML, "it").render(messages)


def test_templates_see_no_objects() -> None:
    for options in (ChatOptions(template_kwargs={"a": print}), ChatOptions(tools=({"f": print},))):
        with pytest.raises(OptionError, match="must be what JSON can hold"):
            ChatTemplate(CHATML, "it").render(CHATS[0], options)


def test_only_a_last_message_of_the_assistant_can_be_continued() -> None:
    with pytest.raises(OptionError, match="the last message must be the assistant's"):
        ChatTemplate(CHATML, "it").render(CHATS[0], ChatOptions(continue_final_message=True))


def test_parts_of_text_are_one_text() -> None:
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]
    assert "a b<|im_end|>" in ChatTemplate(CHATML, "it").render([{"role": "user", "content": parts}]).text
