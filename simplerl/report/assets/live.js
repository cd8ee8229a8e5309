// A page that follows its run: asks what the newest step is, and exchanges its parts when there is something new.
"use strict";

const EVERY = 2000;
const live = { version: document.documentElement.dataset.version, missed: 0 };

function tell(state, text) {
  document.getElementById("live").dataset.state = state;
  document.getElementById("live-text").textContent = text;
}

async function follow() {
  try {
    const asked = await fetch("status", { cache: "no-store" });
    const status = await asked.json();
    live.missed = 0;
    tell(status.state, status.text);
    if (status.version !== live.version) await exchange();
  } catch {
    live.missed += 1;
    if (live.missed > 1) tell("lost", "The server does not answer; this page shows what it knew last.");
  }
  setTimeout(follow, EVERY);
}

/** The new page's parts in the place of the old ones; the browser of responses stays, with what was chosen in it. */
async function exchange() {
  const answer = await fetch("./", { cache: "no-store" });
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  const data = fresh.getElementById("responses-data");
  const browsing = document.getElementById("browser");
  if (data && !browsing) {
    location.reload();
    return;
  }
  const opened = new Set([...document.querySelectorAll("details[open] > summary")].map((each) => each.textContent));
  const parts = [...fresh.querySelector("main").children].map((part) => document.importNode(part, true));
  for (const details of parts.flatMap((part) => [...part.querySelectorAll("details")])) {
    details.open = opened.has(details.querySelector("summary").textContent);
  }
  await Promise.all(parts.flatMap((part) => [...part.querySelectorAll("img")]).map((image) => image.decode().catch(() => {})));
  document.querySelector("header.top").replaceWith(document.importNode(fresh.querySelector("header.top"), true));
  document.querySelector("main").replaceChildren(...parts.map((part) => (part.id === "browser" ? browsing : part)));
  if (data) await loadResponses(data.textContent);
  document.title = fresh.title;
  live.version = fresh.documentElement.dataset.version;
}

setTimeout(follow, EVERY);
