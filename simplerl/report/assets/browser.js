// The browser of responses: which problems are listed, and what stands in the two panes.
"use strict";

const SIGNS = { correct: "✓", wrong: "✗", no_answer: "∅", error: "!" };
const WORDS = { correct: "correct", wrong: "wrong", no_answer: "no answer", error: "error of the verifier" };
const KINDS = {
  all: ["all problems"],
  gained: ["wrong → right", (problem) => problem.ends.some(([first, last]) => !right(first) && right(last))],
  lost: ["right → wrong", (problem) => problem.ends.some(([first, last]) => right(first) && !right(last))],
  kept: ["right at first and last", (problem) => problem.ends.some(([first, last]) => right(first) && right(last))],
  never: ["never right", (problem) => !problem.rows.some(right)],
  differ: ["runs end differently", (problem) => new Set(lastOfRuns(problem).map(right)).size > 1],
  truncated: ["truncated", null, (row) => row.truncated],
  no_answer: ["no answer", null, (row) => row.verdict === "no_answer"],
  error: ["error of the verifier", null, (row) => row.verdict === "error"],
  code: ["with program code", null, (row) => has(row, "code")],
  reflection: ["with a self-check", null, (row) => has(row, "reflection")],
};
const browser = { data: null, listed: [], current: null, panes: [], word: "" };

const at = (id) => document.getElementById(id);
const right = (row) => row.verdict === "correct";

function element(name, className = "", text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

// --- data ------------------------------------------------------------------------------------------------------------

/** Base64 of gzip of JSON. */
async function unpack(text) {
  const binary = atob(text.trim());
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i += 1) bytes[i] = binary.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

/** Columns into rows, each problem with its own, in the order in which they were written. */
function arrange(data) {
  const { rows: columns, problems } = data;
  data.marks = Object.fromEntries(Object.entries(data.marks).map(([kind, rule]) => [kind, new RegExp(rule, "gis")]));
  for (const problem of problems) Object.assign(problem, { rows: [], key: `${problem.source}/${problem.id}` });
  const names = Object.keys(columns);
  for (let i = 0; i < (columns.text ?? []).length; i += 1) {
    const row = Object.fromEntries(names.map((name) => [name, columns[name][i]]));
    row.series = `${row.run}/${row.sampling}`;
    problems[row.problem].rows.push(row);
  }
  for (const problem of problems) {
    problem.rows.sort((a, b) => a.run - b.run || a.sampling - b.sampling || a.step - b.step || a.sample - b.sample);
    problem.ends = [...Map.groupBy(problem.rows, (row) => `${row.series}/${row.sample}`).values()]
      .filter((rows) => rows.length > 1)
      .map((rows) => [rows[0], rows.at(-1)]);
  }
  const order = new Intl.Collator("en", { numeric: true });
  data.problems = problems.toSorted((a, b) => (a.source === b.source ? order.compare(a.id, b.id) : 0));
  return data;
}

function has(row, kind) {
  row.has ??= {};
  return (row.has[kind] ??= row.text.search(browser.data.marks[kind]) >= 0);
}

function lastOfRuns(problem) {
  const [first] = problem.rows;
  const alike = problem.rows.filter((row) => row.sampling === first.sampling && row.sample === first.sample);
  return [...Map.groupBy(alike, (row) => row.run).values()].map((rows) => rows.at(-1));
}

// --- finding ---------------------------------------------------------------------------------------------------------

const holds = (text, word) => (text ?? "").toLowerCase().includes(word);

/** Whether a response fits what is looked for. */
function fits(row, word = browser.word.toLowerCase()) {
  const rule = KINDS[at("kind").value][2];
  return (!rule || rule(row)) && (!word || holds(row.text, word) || holds(row.extracted, word));
}

function isListed(problem, word) {
  const source = at("source").value;
  const rule = KINDS[at("kind").value][1];
  if ((source && problem.source !== source) || (rule && !rule(problem))) return false;
  const named = word && [problem.id, problem.question, problem.answer].some((text) => holds(text, word));
  return problem.rows.some((row) => fits(row, named ? "" : word));
}

function refresh() {
  browser.word = at("search").value.trim();
  const word = browser.word.toLowerCase();
  browser.listed = browser.data.problems.filter((problem) => isListed(problem, word));
  const count = browser.listed.length;
  at("found").textContent = `${count} of ${browser.data.problems.length} problems`;
  at("problems").replaceChildren(...browser.listed.map(entry));
  at("desk").classList.toggle("empty", !count);
  if (count) choose(browser.listed.includes(browser.current) ? browser.current : browser.listed[0]);
}

function entry(problem) {
  const button = element("button", "entry");
  button.type = "button";
  const ends = problem.ends[0] ?? [problem.rows.at(-1)];
  const signs = element("span", "signs");
  ends.forEach((row, index) => signs.append(index ? " → " : "", element("b", row.verdict, SIGNS[row.verdict])));
  button.append(element("span", "name", problem.id), signs, element("span", "asked", problem.question.slice(0, 140)));
  button.addEventListener("click", () => choose(problem));
  const item = element("li");
  item.append(button);
  return item;
}

/** Up and down move through the list. */
function onListKey(event) {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  const next = browser.listed[browser.listed.indexOf(browser.current) + step];
  if (!step || !next) return;
  event.preventDefault();
  choose(next);
  at("problems").querySelector("[aria-current]").focus();
}

// --- one problem -----------------------------------------------------------------------------------------------------

function choose(problem) {
  browser.current = problem;
  const chosen = browser.listed.indexOf(problem);
  [...at("problems").children].forEach((item, index) => {
    if (index === chosen) {
      item.firstChild.setAttribute("aria-current", "true");
      item.scrollIntoView({ block: "nearest", inline: "nearest" });
    } else item.firstChild.removeAttribute("aria-current");
  });
  const facts = [problem.source, problem.id, problem.level && `level ${problem.level}`, problem.subject].filter(Boolean);
  at("facts").textContent = facts.join(" · ");
  at("gold").textContent = problem.answer;
  at("question").replaceChildren();
  paint(at("question"), problem.question, at("formulas").checked ? formulas(problem.question) : []);
  for (const pane of browser.panes) place(pane, problem);
  const searching = browser.word || KINDS[at("kind").value][2];
  if (searching && !browser.panes.some((pane) => fits(pane.row))) {
    const found = problem.rows.findLast((row) => fits(row));
    if (found) put(browser.panes[1], found);
  }
  show();
}

/** Puts a pane where it was in the problem before: the same series, the step nearest to it. */
function place(pane, problem) {
  const series = [...new Set(problem.rows.map((row) => row.series))];
  const own = at("pairing").value === "runs" ? seriesOfRun(problem, pane.number) : pane.series;
  const chosen = series.includes(own) ? own : series[0];
  const rows = problem.rows.filter((row) => row.series === chosen);
  const distance = (row) => (pane.step === Infinity ? -row.step : Math.abs(row.step - Math.max(pane.step, 0)));
  const best = Math.min(...rows.map(distance));
  const near = rows.filter((row) => distance(row) === best);
  pane.row = near.find((row) => row.sample === pane.sample) ?? near[0];
}

function seriesOfRun(problem, run) {
  const sampling = browser.panes[0].series.split("/")[1];
  const rows = problem.rows.filter((row) => row.run === run);
  return (rows.find((row) => `${row.sampling}` === sampling) ?? rows[0])?.series;
}

/** Puts a response into a pane, which stays at its step when another problem is chosen. */
function put(pane, row) {
  const steps = browser.current.rows.filter((each) => each.series === row.series).map((each) => each.step);
  const step = row.step === Math.max(...steps) ? Infinity : row.step;
  Object.assign(pane, { row, series: row.series, step, sample: row.sample });
}

function show() {
  const [a, b] = browser.panes.map((pane) => pane.row.text);
  const compared = at("compare").checked && a !== b ? differences(a, b) : [[], []];
  at("note").textContent = compared ? (a === b ? "Both panes show the same text." : "") : "Too different to compare.";
  browser.panes.forEach((pane, index) => showPane(pane, compared?.[index] ?? []));
}

// --- a pane ----------------------------------------------------------------------------------------------------------

function showPane(pane, compared) {
  const { row, parts } = pane;
  const text = row.text;
  const rules = Object.entries(browser.data.marks).flatMap(([kind, rule]) => matches(text, rule, kind));
  const set = at("formulas").checked && !at("compare").checked ? formulas(text) : [];
  parts.text.replaceChildren();
  paint(parts.text, text, [...rules, ...compared, ...places(text, browser.word), ...set]);
  parts.text.scrollTop = 0;
  showFacts(row, parts);
  const series = Map.groupBy(browser.current.rows, (each) => each.series);
  parts.series.replaceChildren(...[...series].map(([key, [first]]) => option(key, seriesName(first), row.series)));
  parts.strip.replaceChildren(...series.get(row.series).map((each) => cell(pane, each)));
}

function showFacts(row, parts) {
  parts.verdict.textContent = WORDS[row.verdict] ?? row.verdict;
  parts.verdict.className = `verdict ${right(row) ? "good" : "bad"}`;
  parts.answer.textContent = row.extracted ?? "none found";
  const reward = row.reward === null ? [] : [`reward ${+row.reward.toPrecision(4)}`];
  const finish = row.truncated ? "truncated" : "finished";
  const facts = [`step ${row.step}`, finish, `${row.tokens} tokens`, ...reward, browser.data.methods[row.method]];
  parts.facts.textContent = facts.filter(Boolean).join(" · ");
}

function seriesName(row) {
  const sampling = browser.data.samplings[row.sampling];
  return browser.data.runs.length > 1 ? `${browser.data.runs[row.run]}, ${sampling}` : sampling;
}

function option(value, text, chosen) {
  const made = element("option", "", text);
  made.value = value;
  made.selected = value === chosen;
  return made;
}

function cell(pane, row) {
  const button = element("button", `cell ${row.verdict}${row.truncated ? " truncated" : ""}`, SIGNS[row.verdict]);
  const sample = row.sample ? `, sample ${row.sample}` : "";
  button.type = "button";
  button.title = `step ${row.step}${sample}: ${WORDS[row.verdict]}${row.truncated ? ", truncated" : ""}, ${row.tokens} tokens`;
  button.setAttribute("aria-label", button.title);
  if (row === pane.row) button.setAttribute("aria-current", "true");
  button.tabIndex = row === pane.row ? 0 : -1;
  button.addEventListener("click", () => move(pane, row));
  return button;
}

function move(pane, row) {
  put(pane, row);
  show();
  pane.parts.strip.querySelector("[aria-current]")?.focus({ preventScroll: true });
}

/** Left and right move through the responses of a series. */
function onStripKey(pane, event) {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const rows = browser.current.rows.filter((row) => row.series === pane.row.series);
  const next = rows[rows.indexOf(pane.row) + step];
  if (!step || !next) return;
  event.preventDefault();
  move(pane, next);
}

function makePane(number) {
  const node = at("pane").content.firstElementChild.cloneNode(true);
  const parts = Object.fromEntries([...node.querySelectorAll("[data-part]")].map((part) => [part.dataset.part, part]));
  const pane = { number, node, parts, series: "0/0", step: number ? Infinity : 0, sample: 0 };
  parts.text.setAttribute("aria-label", number ? "Right response" : "Left response");
  parts.series.setAttribute("aria-label", number ? "Right series" : "Left series");
  parts.series.addEventListener("change", () => {
    pane.series = parts.series.value;
    if (at("pairing").value === "runs") at("pairing").value = "free";
    place(pane, browser.current);
    show();
  });
  parts.strip.addEventListener("keydown", (event) => onStripKey(pane, event));
  return pane;
}

// --- the whole -------------------------------------------------------------------------------------------------------

/** How the panes are filled when a problem is chosen: the ends of one run, or the last responses of two. */
function pair() {
  const [a, b] = browser.panes;
  const kind = at("pairing").value;
  if (kind === "ends") Object.assign(b, { series: a.series });
  if (kind !== "free") Object.assign(a, { step: kind === "ends" ? 0 : Infinity }), Object.assign(b, { step: Infinity });
  choose(browser.current);
}

function fillChoices() {
  const { problems, runs } = browser.data;
  const sources = [...new Set(problems.map((problem) => problem.source))];
  const [source, kind] = [at("source").value, at("kind").value || "all"];
  at("source").replaceChildren(option("", "all sets", source), ...sources.map((name) => option(name, name, source)));
  const kinds = Object.entries(KINDS).filter(([key]) => key !== "differ" || runs.length > 1);
  at("kind").replaceChildren(...kinds.map(([key, [words]]) => option(key, words, kind)));
  at("pairing").querySelector("[value=runs]").disabled = runs.length < 2;
}

/** Takes new data; what was chosen stays chosen. */
async function loadResponses(text) {
  const chosen = browser.current?.key;
  browser.data = arrange(await unpack(text));
  browser.current = browser.data.problems.find((problem) => problem.key === chosen) ?? null;
  fillChoices();
  refresh();
}

async function startBrowser() {
  browser.panes = [makePane(0), makePane(1)];
  at("panes").replaceChildren(...browser.panes.map((pane) => pane.node));
  let waiting = 0;
  at("search").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(refresh, 150);
  });
  for (const id of ["source", "kind"]) at(id).addEventListener("change", refresh);
  for (const id of ["compare", "formulas"]) at(id).addEventListener("change", () => choose(browser.current));
  at("pairing").addEventListener("change", pair);
  at("problems").addEventListener("keydown", onListKey);
  await loadResponses(at("responses-data").textContent);
  at("desk").hidden = false;
}

async function start() {
  if (at("browser")) {
    try {
      await startBrowser();
    } catch (error) {
      at("found").textContent = `The responses could not be read by this browser: ${error.message}`;
    }
  }
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
}

if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
else start();
