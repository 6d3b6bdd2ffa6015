// Requests to the server: JSON, streams of events, errors as sentences. Knows nothing of the page.

const KEY = "memdec-edge key";  // of the tab's storage, which ends with the tab

export const remember = (key) => sessionStorage.setItem(KEY, key);

// What went wrong, as a sentence. status: of HTTP; 0: no answer came.
export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function ask(path, body, signal) {
  const headers = { Accept: "application/json" };
  const key = sessionStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body) headers["Content-Type"] = "application/json";
  const method = body ? "POST" : "GET";
  const response = await fetch(path, { method, headers, body: body && JSON.stringify(body), signal }).catch(unreached);
  if (!response.ok) throw new Refusal(response.status, await reason(response));
  return response;
}

function unreached(error) {
  if (error.name === "AbortError") throw error;
  throw new Refusal(0, "The server does not answer. Is it still running?");
}

async function reason(response) {
  const said = await response.json().then((body) => body.error.message, () => "");
  if (response.status === 401) return "The server asks for an API key that it knows.";
  if (response.status === 429) {
    const seconds = response.headers.get("Retry-After");
    return `The server is busy (${said}).${seconds ? ` Ask again in ${seconds} s.` : ""}`;
  }
  return said || `The server answered with status ${response.status}.`;
}

// The answer to GET, or to POST with a body.
export const json = async (path, body) => (await ask(path, body)).json();

// The data of a stream of events. Raises Refusal for an error event, and for a stream that breaks off.
export async function* events(path, body, signal) {
  const response = await ask(path, body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ; ) {
    const { done, value } = await reader.read().catch(unreached);
    if (done) throw new Refusal(0, "The answer broke off. Is the server still running?");
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Refusal(event.error.code ?? 500, event.error.message);
      yield event;
    }
  }
}
