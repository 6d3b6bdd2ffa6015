// The panel of memories: which are on, what they weigh, what their files say of themselves; loading and unloading.

import { json } from "./api.js";
import { add, percent } from "./answer.js";

const at = (id) => document.getElementById(id);
const off = new Set();  // names of memories that are switched off; those that are new are on
let loaded = [];
let learns = true;  // weights that no request fixes follow the text

const WORDS = {
  file: "File", domain: "Domain", kind: "Kind", license: "Licence", made_for: "Made for", documents: "Documents", tokens: "Tokens",
  layers: "Layers", n_ctx_train: "Longest context", temperature: "Temperature", recommended: "Recommended lambda",
  eval_dataset: "Measured on", ppl_base: "Perplexity of the base", ppl_memory: "Perplexity of the memory",
  ppl_mixture: "Perplexity of the mixture", users: "Streams that mix it",
};

const number = (value) => (typeof value === "number" ? value.toLocaleString("en", { maximumSignificantDigits: 4 }) : String(value));

export async function refresh() {
  show(await json("memories"));
}

function show({ data, files, auto }) {
  [loaded, learns] = [data, auto];
  at("memories").replaceChildren(...data.map(row));
  at("no-memories").hidden = data.length > 0;
  at("weight").disabled = data.length === 0;
  const names = new Set(data.map((memory) => memory.file));
  const others = files.filter((file) => !names.has(file));
  at("file").replaceChildren(...others.map((file) => new Option(file)));
  at("load-form").hidden = others.length === 0;
  at("auto-label").textContent = learns ? "auto: weights follow the text" : "as the server was told";
  weigh();
}

function row(memory) {
  const made = at("memory").content.cloneNode(true).firstElementChild;
  const input = made.querySelector("input");
  made.querySelector(".name").textContent = memory.name;
  input.checked = !off.has(memory.name);
  input.addEventListener("change", () => (input.checked ? off.delete(memory.name) : off.add(memory.name)));
  const kind = memory.kind === "index" ? "Index of documents" : `Memory${memory.domain ? ` of ${memory.domain}` : ""}`;
  const weight = percent(memory.lambda);
  made.querySelector(".what").textContent = learns ? `${kind}; its weight begins at ${weight}` : `${kind}; it weighs ${weight}`;
  const list = made.querySelector("dl");
  const { train, ...facts } = { ...memory, ...memory.facts };
  for (const [name, word] of Object.entries(WORDS)) if (facts[name] || facts[name] === 0) fact(list, word, facts[name]);
  for (const [name, value] of Object.entries(train ?? {})) fact(list, `Training: ${name.replaceAll("_", " ")}`, shortened(value));
  made.querySelector(".unload").setAttribute("aria-label", `Unload ${memory.name}`);
  made.querySelector(".unload").dataset.id = memory.id;
  return made;
}

const shortened = (value) => (Number.isFinite(Number(value)) ? Number(value) : value);

function fact(list, word, value) {
  add(list, "dt", word);
  add(list, "dd", number(value));
}

function weigh() {
  const text = at("auto").checked ? (learns ? "auto" : "as told") : Number(at("lambda").value).toFixed(2);
  at("lambda-value").textContent = text;
  at("lambda").setAttribute("aria-valuetext", text);
}

// Loads and unloads as asked for; `failed` is told of errors, `said` of what was done.
export function listen(failed, said) {
  const change = async (body, done) => {
    try {
      show(await json("memories", body));
      said(done);
    } catch (error) {
      failed(error);
    }
  };
  at("load-form").addEventListener("submit", (event) => {
    event.preventDefault();
    change({ load: at("file").value }, `${at("file").value} is loaded.`);
  });
  at("memories").addEventListener("click", ({ target }) => {
    if (target.matches(".unload")) change({ unload: Number(target.dataset.id) }, "The memory is unloaded.");
  });
  at("auto").addEventListener("change", weigh);
  at("lambda").addEventListener("input", () => {
    at("auto").checked = false;
    weigh();
  });
}

// What a request says of memories, and the names of those that take part.
export function chosen() {
  const fixed = !at("auto").checked;
  const able = loaded.filter((memory) => fixed || learns || memory.lambda > 0);
  const on = able.filter((memory) => !off.has(memory.name));
  const voices = on.map((memory) => memory.name);
  if (!on.length) return { memory: "none", voices };
  if (fixed) return { memory: on.map(({ id }) => ({ id, lambda: at("lambda").value / on.length })), voices };
  if (on.length === able.length) return { memory: learns ? "auto" : undefined, voices };  // undefined: the server's own
  if (learns) return { memory: on.map(({ id }) => ({ id })), voices };
  const whole = Math.max(1, on.reduce((sum, { lambda }) => sum + lambda, 0));  // an index's lambda comes on top
  return { memory: on.map(({ id, lambda }) => ({ id, lambda: lambda / whole })), voices };
}
