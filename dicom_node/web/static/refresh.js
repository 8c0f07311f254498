// Keeps a page marked `data-live` fresh: every ten seconds its <main> is fetched again and replaced when it changed.
// It waits while the page is hidden, while something inside <main> has the focus, and while the reader paused it.
"use strict";
(() => {
  const main = document.querySelector("main[data-live]");
  const place = document.getElementById("refresh");
  if (!main || !place) return;
  const PERIOD_MS = 10000;
  let paused = false;
  const button = document.createElement("button");
  const words = document.createElement("span");
  button.type = "button";
  const label = () => {
    button.textContent = paused ? "Resume updates" : "Pause updates";
  };
  button.addEventListener("click", () => {
    paused = !paused;
    label();
  });
  label();
  words.textContent = "This page updates itself every 10 s.";
  place.append(words, " ", button);
  const look = async () => {
    if (paused || document.hidden || main.contains(document.activeElement)) return;
    try {
      const answer = await fetch(location.href, { credentials: "same-origin", cache: "no-store" });
      if (!answer.ok) throw new Error(String(answer.status));
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const fresh = page.querySelector("main");
      if (fresh.innerHTML !== main.innerHTML) main.replaceChildren(...fresh.childNodes);
      document.querySelector("footer time").replaceWith(page.querySelector("footer time"));
      words.textContent = "This page updates itself every 10 s.";
    } catch {
      words.textContent = "The node does not answer; this page may be old.";
    }
  };
  setInterval(look, PERIOD_MS);
})();
