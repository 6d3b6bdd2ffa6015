"""The HTTP server: any OpenAI client gets a base with its memories.

    scheduler    the one thread that steps the engine: prefill in pieces, steps, ends
    admission    which jobs have a slot, how many cells each reserves
    job          one stream that the scheduler serves, and what it tells of it
    service      the model behind the routes: opens it, makes jobs, hands out their events
    schemas      what requests may hold, and what is refused
    settings     a request as options of this package
    prompts      messages and tools as a prompt
    tools        tool calls: how a model is told of them, how its text becomes calls
    chats        a chat as streams, and its answers as deltas: text divided into reasoning, content and calls
    logprobs     log-probs in the shapes that clients know
    completions  routes of OpenAI: completions and chat completions
    responses    OpenAI's responses, messages    Anthropic's messages: translations of a chat
    native       llama.cpp's completion            facts       health, model, props, slots, tokens
    memories     memories listed, loaded, unloaded, weighed
    metrics      Prometheus                        figures     usage and timings
    events       server-sent events, and clients that leave
    page         the page at /: chat with base and memories side by side
    guard        keys, hosts, origins, sizes, headers, the log
    failures     errors as answers
    app          all routes together; run: the process around them

Knows nothing of decoding.
"""
