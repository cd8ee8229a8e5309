// How a response is shown: highlighted, compared, with its formulas. What a model wrote only ever becomes text nodes.
"use strict";

const MOST_CELLS = 4e6; // of the table behind a comparison: 8 MB
const MOST_RANGES = 5000;
const LONGEST_FORMULA = 1000;
const FORMULA_MILLISECONDS = 250;

// --- ranges ----------------------------------------------------------------------------------------------------------

/** Every match of a rule as {start, end, kind}. */
function matches(text, rule, kind) {
  const found = [];
  for (const match of text.matchAll(rule)) {
    if (match[0]) found.push({ start: match.index, end: match.index + match[0].length, kind });
    if (found.length >= MOST_RANGES) break;
  }
  return found;
}

/** Every place of a word, in upper or lower case. */
function places(text, word) {
  const pattern = word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  return word ? matches(text, new RegExp(pattern, "gi"), "hit") : [];
}

/** Appends a text cut where ranges begin and end; a piece has the classes of all ranges around it. */
function paint(parent, text, ranges) {
  const edges = new Map([[text.length, []]]);
  const add = (at, range, step) => edges.set(at, [...(edges.get(at) ?? []), [range, step]]);
  for (const range of ranges) {
    add(range.start, range, 1);
    add(range.end, range, -1);
  }
  const open = new Map();
  let last = 0;
  for (const at of [...edges.keys()].sort((a, b) => a - b)) {
    appendPiece(parent, text.slice(last, at), [...open.keys()]);
    for (const [range, step] of edges.get(at)) step > 0 ? open.set(range) : open.delete(range);
    last = at;
  }
}

function appendPiece(parent, text, ranges) {
  const formula = ranges.find((range) => range.node);
  if (formula) {
    if (!formula.node.isConnected && !formula.node.parentNode) parent.append(formula.node);
  } else if (text && ranges.length) {
    const mark = document.createElement("mark");
    mark.className = [...new Set(ranges.map((range) => range.kind))].join(" ");
    mark.textContent = text;
    parent.append(mark);
  } else {
    parent.append(text);
  }
}

// --- differences -----------------------------------------------------------------------------------------------------

/** What only one of two texts has, as ranges of each; null where they are too long and too different to compare. */
function differences(a, b) {
  for (const rule of [/[\p{L}\p{N}]+|\s+|[^\p{L}\p{N}\s]/gu, /[^\n]*\n?/g]) {
    const found = compareTokens(a.match(rule) ?? [], b.match(rule) ?? []);
    if (found) return found;
  }
  return null;
}

function compareTokens(a, b) {
  let start = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start += 1;
  let end = 0;
  while (end < a.length - start && end < b.length - start && a.at(-1 - end) === b.at(-1 - end)) end += 1;
  const middle = [a.slice(start, a.length - end), b.slice(start, b.length - end)];
  if ((middle[0].length + 1) * (middle[1].length + 1) > MOST_CELLS) return null;
  const [keptA, keptB] = common(...middle);
  const before = a.slice(0, start).join("").length;
  return [missing(middle[0], keptA, before, "gone"), missing(middle[1], keptB, before, "new")];
}

/** Which tokens belong to the longest common subsequence. */
function common(a, b) {
  const width = b.length + 1;
  const longest = new Uint16Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i -= 1) {
    for (let j = b.length - 1; j >= 0; j -= 1) {
      const at = i * width + j;
      longest[at] = a[i] === b[j] ? longest[at + width + 1] + 1 : Math.max(longest[at + width], longest[at + 1]);
    }
  }
  const kept = [new Set(), new Set()];
  for (let i = 0, j = 0; i < a.length && j < b.length; ) {
    if (a[i] === b[j]) {
      kept[0].add(i++);
      kept[1].add(j++);
    } else if (longest[(i + 1) * width + j] >= longest[i * width + j + 1]) i += 1;
    else j += 1;
  }
  return kept;
}

function missing(tokens, kept, before, kind) {
  const ranges = [];
  let at = before;
  tokens.forEach((token, index) => {
    const last = ranges.at(-1);
    if (!kept.has(index)) {
      if (last?.end === at) last.end += token.length;
      else ranges.push({ start: at, end: at + token.length, kind });
    }
    at += token.length;
  });
  return ranges;
}

// --- formulas --------------------------------------------------------------------------------------------------------

// A dollar sign opens a formula before, and closes it behind, what is no space; "$5 and $6" is about money.
const FORMULAS = new RegExp(
  [
    String.raw`\$\$(?<blockDollar>[^$]+)\$\$`,
    String.raw`\$(?<dollar>(?!\s)[^$\n]*[^$\s])\$(?!\d)`,
    String.raw`\\\[(?<block>[^]{1,1000}?)\\\]`,
    String.raw`\\\((?<inline>[^]{1,1000}?)\\\)`,
    String.raw`(?<environment>\\begin\{(?:align|equation|gather)\*?\}[^]{1,1000}?\\end\{(?:align|equation|gather)\*?\})`,
  ].join("|"),
  "g",
);
const DEFINES = /\\(?:[gex]?def|let|futurelet|(?:re)?newcommand|providecommand|newenvironment)(?![a-zA-Z])/;
const ELEMENTS = new Set(
  ("math mrow mi mn mo ms mtext mspace msub msup msubsup mfrac msqrt mroot mstyle mover munder munderover mmultiscripts " +
    "mprescripts none mtable mtr mtd mpadded mphantom menclose merror").split(" "),
);
const ATTRIBUTES = new Set(
  ("accent accentunder class columnalign columnlines columnspacing columnspan depth dir display displaystyle fence form " +
    "height largeop linethickness lspace mathbackground mathcolor mathsize mathvariant maxsize minsize movablelimits " +
    "notation rowlines rowspacing rowspan rspace scriptlevel separator stretchy style symmetric voffset width").split(" "),
);

/** Formulas of a text as ranges that carry what to show in their place; what cannot be set stays as it was written. */
function formulas(text) {
  const until = performance.now() + FORMULA_MILLISECONDS;
  const found = [];
  for (const match of text.matchAll(FORMULAS)) {
    if (performance.now() > until) break;
    const { blockDollar, dollar, block, inline, environment } = match.groups;
    const source = blockDollar ?? dollar ?? block ?? inline ?? environment;
    const node = formula(source, dollar === undefined && inline === undefined);
    if (node) found.push({ start: match.index, end: match.index + match[0].length, node });
  }
  return found;
}

function formula(source, display) {
  if (source.length > LONGEST_FORMULA || DEFINES.test(source)) return null;
  const holder = document.createElement("span");
  holder.className = "formula";
  holder.title = source;
  const options = { displayMode: display, throwOnError: true, maxSize: [20, 20], maxExpand: 200, trust: false };
  try {
    temml.render(source, holder, { ...options, macros: {} });
  } catch {
    return null;
  }
  return [...holder.querySelectorAll("*")].every(isMathematics) ? holder : null;
}

function isMathematics(element) {
  return (
    element.namespaceURI === "http://www.w3.org/1998/Math/MathML" &&
    ELEMENTS.has(element.localName) &&
    [...element.attributes].every(({ name, value }) => ATTRIBUTES.has(name) && !/url|expression|[\\@]/i.test(value))
  );
}
