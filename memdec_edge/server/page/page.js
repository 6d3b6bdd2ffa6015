// The page: a chat in two columns, the base alone and with its memories, on one prompt and one seed. It knows the server's
// public routes alone.

import { Answer, percent } from "./answer.js";
import { Refusal, events, json, remember } from "./api.js";
import * as memories from "./memories.js";

const at = (id) => document.getElementById(id);
const [question, ask, stop, anew, turns, status, problem] = ["question", "ask", "stop", "anew", "turns", "status", "error"].map(at);
const ENDS = { length: "cut at its length", stop: "complete", tool_calls: "a tool call" };
let messages = [];  // of the chat so far; the answers in it are those with the memories
let stopper = null;  // of the answers that are on their way
let ready = false;

const say = (text) => (status.textContent = text);  // for screen readers

function fail(error) {
  problem.textContent = error.message;
  problem.hidden = false;
  if (error.status === 401) {
    at("key-form").hidden = false;
    at("key").focus();
  }
}

function enable() {
  ask.disabled = !ready || stopper !== null;
  stop.disabled = stopper === null;
  anew.disabled = stopper !== null || turns.children.length === 0;
}

// --- the server -------------------------------------------------------------------------------------------------------

const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, 1e3 * seconds));

// Wait until the model is loaded, then show what is served.
async function connect() {
  problem.hidden = true;
  try {
    while (!(await isLoaded())) await pause(1);
    const props = await json("props");
    await memories.refresh();
    at("model").textContent = `${props.model_alias}, ${props.n_ctx.toLocaleString("en")} tokens of context`;
    at("temperature").value = Number(props.default_generation_settings.params.temperature.toFixed(3));
    at("key-form").hidden = true;
    ready = true;
  } catch (error) {
    at("model").textContent = "";
    fail(error);
  }
  enable();
}

async function isLoaded() {
  try {
    await json("health");
    return true;
  } catch (error) {
    if (error.status !== 503) throw error;
    at("model").textContent = "The model is loading …";
    return false;
  }
}

at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  remember(at("key").value.trim());
  at("key").value = "";
  connect();
});

// --- a turn -----------------------------------------------------------------------------------------------------------

function fresh(id) {
  return at(id).content.cloneNode(true).firstElementChild;
}

// Change what is shown. A window at the end of the page stays at its end, except while a token has the focus.
function following(change) {
  const follows = innerHeight + scrollY > document.body.scrollHeight - 80 && !document.activeElement.matches(".token");
  change();
  if (follows) scrollTo(0, document.body.scrollHeight);
}

const drawSeed = () => crypto.getRandomValues(new Uint32Array(1))[0] % 2 ** 31;

// What both columns ask for.
function wanted(text) {
  const system = at("system").value.trim();
  const seed = at("seed").value === "" ? drawSeed() : Number(at("seed").value);
  return {
    messages: [...(system ? [{ role: "system", content: system }] : []), ...messages, { role: "user", content: text }],
    stream: true, seed, temperature: Number(at("temperature").value), max_tokens: Number(at("most").value),
    return_memory: true, return_progress: true, timings_per_token: true,
  };
}

async function turn(text) {
  const shared = wanted(text);
  const { memory, voices } = memories.chosen();
  const item = fresh("turn");
  item.querySelector(".asked").textContent = text;
  turns.append(item);
  at("intro").hidden = true;
  const columns = item.querySelector(".columns");
  const sides = [];
  if (!voices.length || at("compare").checked) sides.push(new Side(columns, "Base alone", [], { ...shared, memory: "none" }));
  if (voices.length) sides.push(new Side(columns, "With memory", voices, { ...shared, memory }));
  scrollTo(0, document.body.scrollHeight);
  say("The answers are on their way.");
  await Promise.all(sides.map((side) => side.run(stopper.signal)));
  const last = sides.at(-1);
  if (last.answer.text) messages.push({ role: "user", content: text }, { role: "assistant", content: last.answer.text });
  else if (sides.some((side) => side.failed)) question.value ||= text;
  say(last.failed ? `No answer. ${last.failed.message}` : `${last.title}: ${last.answer.text}`);
}

// One column of a turn.
class Side {
  constructor(columns, title, voices, body) {
    const element = fresh("side");
    this.title = title;
    this.body = body;
    this.failed = null;
    this.figures = element.querySelector(".figures");
    this.problem = element.querySelector(".problem");
    element.querySelector("h3").textContent = voices.length ? `${title}: ${voices.join(", ")}` : title;
    columns.append(element);
    this.answer = new Answer(element.querySelector(".answer"), title, voices);
  }

  async run(signal) {
    const { root } = this.answer;
    let end = "complete";
    root.setAttribute("aria-busy", "true");
    this.figures.textContent = "waits for its turn";
    try {
      for await (const event of events("v1/chat/completions", this.body, signal)) {
        const [choice] = event.choices;
        if (choice?.finish_reason) end = ENDS[choice.finish_reason] ?? choice.finish_reason;
        this.take(event, choice);
      }
    } catch (error) {
      end = error.name === "AbortError" ? "stopped" : "broken off";
      if (error.name !== "AbortError") this.fail(error);
    }
    root.setAttribute("aria-busy", "false");
    following(() => this.show(this.timings, end));
  }

  take(event, choice) {
    const { prompt_progress: progress, timings } = event;
    if (progress) this.figures.textContent = `reads the prompt, ${percent(progress.processed / progress.total)}`;
    else if (choice) {
      following(() => {
        this.answer.take(choice);
        if (timings) this.show((this.timings = timings), "");
      });
    }
  }

  show(timings, end) {
    const { tokens, share, voices } = this.answer;
    const speed = timings?.predicted_per_second;
    const parts = [`${tokens} tokens`, speed && `${speed.toFixed(1)} tokens/s`, voices.length && tokens && `share ${percent(share)}`];
    this.figures.textContent = [...parts, end && `seed ${this.body.seed}`, end].filter(Boolean).join(" · ");
  }

  fail(error) {
    this.failed = error instanceof Refusal ? error : new Refusal(0, `This page failed: ${error.message}`);
    following(() => {
      this.problem.textContent = this.failed.message;
      this.problem.hidden = false;
    });
    if (error.status === 401) fail(error);
  }
}

at("ask-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = question.value.trim();
  if (!text || ask.disabled) return;
  problem.hidden = true;
  question.value = "";
  stopper = new AbortController();
  enable();
  try {
    await turn(text);
  } finally {
    stopper = null;
    enable();
  }
});

question.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  at("ask-form").requestSubmit();
});

stop.addEventListener("click", () => stopper?.abort());

anew.addEventListener("click", () => {
  messages = [];
  turns.replaceChildren();
  at("intro").hidden = false;
  enable();
  question.focus();
});

document.addEventListener("visibilitychange", () => {
  if (ready && !stopper && !document.hidden) memories.refresh().catch(fail);  // other clients load and unload too
});
memories.listen(fail, say);
at("panel").open = innerWidth > 56 * 16;
connect();
