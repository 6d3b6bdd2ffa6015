"""What requests may hold, as OpenAI, llama.cpp and Anthropic spell it. Ranges are those of the options (settings.py).

A field that is not named here is ignored where it changes no result, and refused where it does: see REFUSED. A field
that is null counts as absent. Knows nothing of models.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from memdec_edge.errors import OptionError

# Fields that would change the answer and that nothing here follows -> values that change nothing.
REFUSED: dict[str, tuple[Any, ...]] = {
    "suffix": ("",), "best_of": (1,), "functions": ([],), "function_call": ("none",), "audio": (),
    "modalities": (["text"],), "web_search_options": (), "prediction": (), "mirostat": (0,), "typical_p": (1.0,),
    "dry_multiplier": (0.0,), "xtc_probability": (0.0,), "dynatemp_range": (0.0,), "top_n_sigma": (-1.0, 0.0),
    "post_sampling_probs": (False,), "n_keep": (0,), "lora": ([],), "previous_response_id": (), "background": (False,),
    "use_beam_search": (False,), "min_tokens": (0,), "prompt_logprobs": (), "bad_words": ([],),
}  # fmt: skip

Text = Annotated[str, Field(max_length=1 << 26)]
Count = Annotated[int, Field(ge=0)]
Stop = str | list[str] | None
Tokens = list[int]


class StreamOptions(BaseModel):
    """Whether a stream ends with a chunk of usage."""

    include_usage: bool | None = None


class MemoryWeight(BaseModel):
    """A memory, by its number or its name, and its weight in the mixture; null for all: they follow the text."""

    id: int | str
    weight: float | None = Field(default=None, alias="lambda")


MemoryChoice = Literal["auto", "none"] | float | list[MemoryWeight] | None


class Common(BaseModel):
    """What all requests for text share."""

    model_config = ConfigDict(extra="allow", populate_by_name=True)

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    memory: MemoryChoice = None
    return_memory: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    repetition_penalty: float | None = None
    repeat_last_n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    grammar: str | None = None
    json_schema: Any = None
    response_format: dict[str, Any] | None = None
    logit_bias: dict[str, float | bool] | list[tuple[int | str, float | bool]] | None = None
    ignore_eos: bool | None = None
    stop: Stop = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    n_predict: int | None = None
    max_tokens: int | None = None
    timings_per_token: bool | None = None
    return_progress: bool | None = None
    verbose: bool | None = None

    def refuse_unknown(self) -> None:
        """Raise OptionError for a field that would change the answer and is not followed."""
        for name, value in (self.model_extra or {}).items():
            if name in REFUSED and value is not None and value not in REFUSED[name]:
                raise OptionError(name, str(value)[:80], "this server does not follow it; leave it out")


class ChatRequest(Common):
    """A chat: OpenAI's chat completions, and what llama.cpp adds."""

    messages: Any = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: Count | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


class CompletionRequest(Common):
    """OpenAI's completions: a text goes on, without a template."""

    prompt: str | Tokens | list[str | Tokens]
    echo: bool | None = None
    logprobs: bool | Count | None = None
    max_completion_tokens: int | None = None


class NativeRequest(Common):
    """llama.cpp's completion. A prompt may mix texts and token ids."""

    prompt: Any = None
    n_probs: Count | None = None
    return_tokens: bool | None = None
    response_fields: list[str] | None = None


class ResponsesRequest(Common):
    """OpenAI's responses, without a state: the input holds all that was said."""

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    top_logprobs: Count | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class MessagesRequest(Common):
    """Anthropic's messages."""

    messages: list[dict[str, Any]]
    system: str | list[dict[str, Any]] | None = None
    stop_sequences: list[str] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None


class TokenizeRequest(BaseModel):
    """llama.cpp's `content`, or vLLM's `prompt` or `messages`."""

    content: Any = None
    prompt: str | None = None
    messages: Any = None
    add_special: bool | None = None
    add_special_tokens: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None
    return_token_strs: bool | None = None
    tools: list[dict[str, Any]] | None = None


class DetokenizeRequest(BaseModel):
    """Token ids."""

    tokens: Tokens


class MemoriesRequest(BaseModel):
    """One change to the memories: a file of the folder is loaded, one is unloaded, or weights change."""

    model_config = ConfigDict(populate_by_name=True)

    load: str | None = None
    unload: int | str | None = None
    weights: list["NewWeight"] | None = None
    weight: float | None = Field(default=None, alias="lambda")


class NewWeight(BaseModel):
    """A memory and the lambda that new requests give it; null: it follows the text, or what the file recommends."""

    id: int | str
    weight: float | None = Field(default=None, alias="lambda")
