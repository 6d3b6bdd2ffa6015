// One answer as tokens: shaded by the memories' share, and each shows what else could stand there. What models write is
// only ever set as text. Knows nothing of requests.

const panel = document.getElementById("alternatives");
const facts = new WeakMap();  // of each token's element: what the server told, and names of the voices

export function add(parent, tag, text = "", kind = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = kind;
  return parent.appendChild(made);
}

export const percent = (part) => `${(100 * part).toFixed(part < 0.0995 && part > 0 ? 1 : 0)} %`;
const shown = (text) => text.replace(/^ /, "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥") || "∅";

export class Answer {
  // voices: names of the memories that were asked to take part.
  constructor(root, label, voices) {
    this.root = root;
    this.voices = voices;
    this.text = "";
    this.tokens = 0;
    this.shares = 0;
    this.held = [];  // tokens whose text has not come yet
    root.setAttribute("aria-label", `Answer, ${label}. Arrow keys step through its tokens.`);
    root.addEventListener("keydown", step);
    root.addEventListener("focusin", (event) => reveal(event.target));
    root.addEventListener("focusout", hide);
    root.addEventListener("pointerover", (event) => reveal(event.target));
    root.addEventListener("pointerleave", () => (root.contains(document.activeElement) ? reveal(document.activeElement) : hide()));
  }

  // A choice of a chunk: text, and what the memories had to do with it.
  take({ delta, memory }) {
    const text = delta.content || delta.reasoning_content || "";
    this.text += delta.content || "";
    if (memory) {
      this.held.push(memory);
      this.tokens += 1;
      this.shares += memory.share ?? 0;
    }
    if (!text) return;
    const span = add(this.root, "span", text, delta.reasoning_content ? "token thought" : "token");
    span.tabIndex = this.root.children.length === 1 ? 0 : -1;
    if (this.held.length) {
      facts.set(span, { tokens: this.held, voices: this.voices });
      span.style.setProperty("--share", Math.max(...this.held.map((one) => one.share ?? 0)).toFixed(3));
      this.held = [];
    }
  }

  get share() {
    return this.tokens ? this.shares / this.tokens : 0;
  }
}

// Arrow keys move the focus between tokens; the answer itself is one stop of the tab key.
function step(event) {
  const all = [...this.children];
  const at = all.indexOf(document.activeElement);
  const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1 }[event.key];
  if (event.key === "Escape") hide();
  if (at < 0 || to === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  const next = all[Math.min(Math.max(to, 0), all.length - 1)];
  all[at].tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

function hide() {
  panel.hidden = true;
  document.querySelector("[aria-describedby=alternatives]")?.removeAttribute("aria-describedby");
}

function reveal(span) {
  const found = facts.get(span);
  hide();
  if (!found) return;
  panel.replaceChildren();
  for (const token of found.tokens) describe(token, found.voices);
  panel.hidden = false;
  span.setAttribute("aria-describedby", "alternatives");
  place(span.getClientRects()[0]);
}

function describe(token, names) {
  const [base, ...others] = token.logprobs.map(Math.exp);
  const named = names.length === others.length ? names : others.map((_, number) => `voice ${number + 1}`);
  const parts = [`base ${percent(base)}`, ...others.map((p, number) => `${named[number]} ${percent(p)}`)];
  const share = others.length ? ` Share of the memories: ${percent(token.share)}.` : "";
  add(panel, "p", `“${shown(token.token)}” had ${percent(Math.exp(token.logprob))} (${parts.join(", ")}).${share}`);
  if (token.source) add(panel, "p", `These words stand in ${token.source.document}.`);
  const [first, ...rest] = token.top?.voices ?? [];
  if (!first) return;
  const table = add(panel, "div", "", "voices");
  list(table, "Base", first, token, token.weights[0]);
  rest.forEach((top, number) => list(table, named[number].replace(/^memdec-/, ""), top, token, token.weights[number + 1]));
  if (rest.length) list(table, "Mixture", token.top.mixture, token);
}

function list(table, title, tops, drawn, weight) {
  const column = add(table, "div");
  add(column, "h4", title);
  add(column, "p", weight === undefined ? "weighted sum" : `weight ${weight.toFixed(2)}`, "hint");
  const items = add(column, "ol");
  for (const top of tops) {
    const item = add(items, "li", "", top.id === drawn.id ? "drawn" : "");
    add(item, "span", shown(top.token));
    add(item, "span", percent(Math.exp(top.logprob)));
    item.style.setProperty("--p", Math.exp(top.logprob).toFixed(3));
  }
  if (!tops.length) add(items, "li", "no match");
}

// Below the token where there is room, else above it; never out of sight.
function place(token) {
  const { width, height } = panel.getBoundingClientRect();
  const below = token.bottom + 6;
  const top = below + height < innerHeight ? below : Math.max(token.top - height - 6, 4);
  panel.style.top = `${top}px`;
  panel.style.left = `${Math.max(Math.min(token.left, innerWidth - width - 8), 8)}px`;
}
