"""llama.cpp's /completion, and the routes that tell of model, slots and tokens."""

from typing import Any

import pytest

from tests.support.web import Web

TEXT = "Anaemia is a lack"


def test_a_completion_says_what_openais_route_says(web: Web) -> None:
    done = web.post("/completion", {"prompt": TEXT, "n_predict": 12, "ignore_eos": True, "return_tokens": True}).body
    other = web.post("/v1/completions", {"prompt": TEXT, "max_tokens": 12, "ignore_eos": True}).body
    assert done["content"] == other["choices"][0]["text"]
    assert (done["tokens_predicted"], done["stop_type"], done["truncated"], done["stop"]) == (12, "limit", False, True)
    assert done["tokens_evaluated"] == other["usage"]["prompt_tokens"]
    base = web.service.model.engine.base
    assert b"".join(map(base.piece, done["tokens"])).decode("utf-8", "replace") == done["content"]
    assert done["generation_settings"]["n_predict"] == 12
    assert done["generation_settings"]["logit_bias"] == [
        {"token": token, "bias": None} for token in sorted(base.eog_tokens)
    ]
    assert done["prompt"].endswith(TEXT)


def test_a_stream_joins_to_the_whole_and_ends_with_the_settings(web: Web) -> None:
    asked = {"prompt": TEXT, "n_predict": 8, "ignore_eos": True}
    whole = web.post("/completion", asked).body
    events = web.events("/completion", asked)
    assert "".join(event["content"] for event in events) == whole["content"]
    assert [event["stop"] for event in events] == [False] * 8 + [True]
    assert all(len(event["tokens"]) == 1 for event in events[:-1])
    assert events[-1]["timings"]["predicted_n"] == 8


def test_stops_are_told_apart(web: Web) -> None:
    whole = web.post("/completion", {"prompt": TEXT, "n_predict": 30}).body["content"]
    stop = whole[4:7]
    done = web.post("/completion", {"prompt": TEXT, "n_predict": 30, "stop": [stop]}).body
    assert (done["stop_type"], done["stopping_word"], done["content"]) == ("word", stop, whole[: whole.index(stop)])
    end = web.service.model.engine.base.eos
    ended = web.post("/completion", {"prompt": TEXT, "n_predict": 30, "logit_bias": [[end, 1000.0]]}).body
    assert (ended["stop_type"], ended["content"]) == ("eos", "")


def test_prompts_mix_texts_and_ids(web: Web) -> None:
    ids = web.post("/tokenize", {"content": TEXT, "add_special": True}).body["tokens"]
    asked = {"n_predict": 4}
    one = web.post("/completion", asked | {"prompt": TEXT}).body["content"]
    assert web.post("/completion", asked | {"prompt": ids}).body["content"] == one
    many = web.post("/completion", asked | {"prompt": [ids, TEXT, {"prompt_string": TEXT}]}).body
    assert [each["content"] for each in many] == [one] * 3
    assert [each["index"] for each in many] == [0, 1, 2]
    mixed = web.post("/completion", asked | {"prompt": [5, 6, TEXT, 7]}).body
    assert mixed["tokens_evaluated"] == 3 + len(ids)


@pytest.mark.parametrize(
    "prompt", [None, 3, {}, [], [[]], [{"prompt_string": TEXT, "multimodal_data": "x"}], [1.5], [-1]], ids=str
)
def test_what_is_no_prompt_is_refused(web: Web, prompt: Any) -> None:
    done = web.post("/completion", {"prompt": prompt, "n_predict": 2})
    assert (done.status, done.body["error"]["type"]) == (400, "invalid_request_error")


def test_probabilities_have_ids_and_bytes(web: Web) -> None:
    done = web.post("/completion", {"prompt": TEXT, "n_predict": 5, "n_probs": 10, "ignore_eos": True}).body
    assert len(done["completion_probabilities"]) == 5
    for one in done["completion_probabilities"]:
        assert len(one["top_logprobs"]) == 10
        assert one["logprob"] == one["top_logprobs"][0]["logprob"]
        assert {"id", "token", "bytes"} <= set(one)


def test_an_answer_may_have_some_fields_alone(web: Web) -> None:
    fields = ["content", "generation_settings/n_predict", "prompt"]
    done = web.post("/completion", {"prompt": TEXT, "n_predict": 3, "response_fields": fields}).body
    assert set(done) == set(fields)
    assert done["generation_settings/n_predict"] == 3


def test_the_description_declares_events_where_a_request_may_ask_for_a_stream(web: Web) -> None:
    found = web.get("/openapi.json").body
    streaming = {name for name, schema in found["components"]["schemas"].items() if "stream" in schema["properties"]}
    seen = set()
    for path, route in found["paths"].items():
        body = route.get("post", {}).get("requestBody", {}).get("content", {}).get("application/json", {})
        kind = body.get("schema", {}).get("$ref", "").rpartition("/")[2]
        answers = "/count_tokens" not in path and "/input_tokens" not in path and path != "/apply-template"
        if kind in streaming and answers:
            seen.add(path.removeprefix("/v1"))
            assert set(route["post"]["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}, path
    assert seen == {"/chat/completions", "/completions", "/responses", "/messages", "/completion"}


# --- facts ----------------------------------------------------------------------------------------------------------


def test_texts_and_tokens_in_both_dialects(web: Web) -> None:
    text = "What is 媽 and 🤗?"
    base = web.service.model.engine.base
    ids = web.post("/tokenize", {"content": text}).body["tokens"]
    assert ids == base.tokenize(text, add_special=False)
    assert web.post("/detokenize", {"tokens": ids}).body == {"content": text, "prompt": text}
    pieces = web.post("/tokenize", {"content": text, "with_pieces": True}).body["tokens"]
    spelled = [one["piece"].encode() if isinstance(one["piece"], str) else bytes(one["piece"]) for one in pieces]
    assert b"".join(spelled).decode() == text
    vllm = web.post("/v1/tokenize", {"prompt": text, "return_token_strs": True}).body
    assert vllm["tokens"] == base.tokenize(text)
    assert vllm["count"] == len(vllm["tokens"]) == len(vllm["token_strs"])
    bare = web.post("/tokenize", {"prompt": text, "add_special_tokens": False}).body["tokens"]
    assert bare == ids
    named = web.post("/tokenize", {"content": "<|endoftext|>", "parse_special": False}).body["tokens"]
    assert len(named) > 1
    assert web.post("/tokenize", {"content": "<|endoftext|>"}).body["tokens"] == [0]
    chat = web.post("/tokenize", {"messages": [{"role": "user", "content": "Hi"}]}).body
    assert chat["tokens"] == web.service.model.prompt([{"role": "user", "content": "Hi"}]).tokens
    assert web.post("/detokenize", {"tokens": [400_000]}).status == 400
    assert web.post("/tokenize", {"content": 3}).status == 400


def test_the_tokenizer_says_what_an_evaluation_asks(web: Web) -> None:
    found = web.get("/tokenizer_info").body
    assert found["eos_token"] == found["bos_token"] == "<|endoftext|>"
    assert "[assistant]" in found["chat_template"]
    assert found["model_max_length"] == 512


def test_the_model_is_listed(web: Web) -> None:
    for path in ("/models", "/v1/models"):
        [model] = web.get(path).body["data"]
        assert (model["id"], model["object"]) == ("tiny", "model")
        assert model["meta"]["n_ctx"] == 1024
    assert web.get("/v1/models/tiny").body["id"] == "tiny"
    assert web.get("/v1/models/other").status == 404


def test_health_props_and_slots(web: Web) -> None:
    assert web.get("/health").body == web.get("/v1/health").body == {"status": "ok"}
    props = web.get("/props").body
    assert props["total_slots"] == 4
    assert props["default_generation_settings"]["params"]["seed"] == 1
    assert props["model_path"] == "talker.gguf"  # a name and no path
    web.until_idle()
    slots = web.get("/slots").body
    assert [slot["id"] for slot in slots] == [0, 1, 2, 3]
    assert not any(slot["is_processing"] for slot in slots)
    with web.open_request("/completion", {"prompt": TEXT, "n_predict": 400, "ignore_eos": True}):
        web.until(lambda scheduler: scheduler.active)
        busy = [slot for slot in web.get("/slots").body if slot["is_processing"]]
        assert len(busy) <= 1
        assert TEXT not in str(busy)
    web.until_idle()


def test_embeddings_are_refused_with_the_reason(web: Web) -> None:
    done = web.post("/v1/embeddings", {"input": "x"})
    assert (done.status, done.body["error"]["type"]) == (501, "not_supported_error")
    assert "hidden state" in done.body["error"]["message"]


def metrics(web: Web) -> dict[str, float]:
    answer = web.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    lines = [line for line in str(answer.body).splitlines() if not line.startswith("#")]
    assert all(line.startswith("memdec_edge:") for line in lines)
    return {name.removeprefix("memdec_edge:"): float(value) for name, value in (line.split(" ") for line in lines)}


def test_metrics_count_what_answers_say(web: Web) -> None:
    before = metrics(web)
    done = web.post("/completion", {"prompt": TEXT, "n_predict": 9, "ignore_eos": True, "memory": 0.5}).body["timings"]
    after = metrics(web)
    grown = {name: after[name] - before[name] for name in after}
    assert grown["tokens_predicted_total"] == 9
    assert grown["prompt_tokens_total"] == done["prompt_n"]
    assert grown["prompt_tokens_cached_total"] == done["cache_n"]
    assert grown["requests_finished_total"] == 1
    assert grown["n_decode_total"] > 0
    assert grown["memory_decode_total"] > 0
    assert after["requests_processing"] == after["requests_deferred"] == 0
    assert 0 < after["memory_share"] < 1
    assert 0 < after["memory_weight"] < 1
    assert after["kv_cells_free"] == 1024
