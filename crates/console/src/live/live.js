// Keeps the page as the server has it. The server sends the parts of the page that have changed, and this script replaces what
// differs in them. It keeps the focus, the scroll positions, what is folded, and what the reader has entered.
"use strict";
(() => {
  const line = document.getElementById("live");
  if (!line || !window.EventSource || !document.querySelector("[data-live]")) return;

  const base = document.currentScript.src.replace(/live\.js$/, "");
  const root = new URL(base).pathname;
  const path = location.pathname.startsWith(root) ? location.pathname.slice(root.length - 1) : "/";
  const address = base + "events?page=" + encodeURIComponent(path + location.search);
  const LONGEST_PAUSE = 30000;

  let source = null;
  let timer = 0;
  let pause = 1000;
  let ended = false;

  function say(state, text) {
    document.documentElement.dataset.connection = state;
    line.dataset.state = state;
    if (line.textContent !== text) line.textContent = text;
  }

  function connect() {
    disconnect();
    source = new EventSource(address);
    source.onopen = () => {
      pause = 1000;
      say("live", "Live");
    };
    source.onerror = () => {
      if (ended) return;
      say("waiting", "Reconnecting…");
      // The browser tries again by itself, unless the server has refused the stream: too many pages are open, for example.
      if (source.readyState !== EventSource.CLOSED) return;
      say("waiting", "Not live: the console is not reachable, or too many pages are open. Trying again…");
      timer = setTimeout(connect, pause);
      pause = Math.min(pause * 2, LONGEST_PAUSE);
    };
    source.addEventListener("fragment", (event) => {
      const { id, html } = JSON.parse(event.data);
      replace(id, html);
    });
    source.addEventListener("available", () => say("live", "Live"));
    source.addEventListener("unavailable", () => say("waiting", "The store does not answer: the page shows the last answer."));
    source.addEventListener("end", (event) => {
      ended = true;
      disconnect();
      say("ended", event.data);
    });
  }

  function disconnect() {
    clearTimeout(timer);
    if (source) source.close();
    source = null;
  }

  // A page in the background holds no connection: a browser has only six for each server.
  document.addEventListener("visibilitychange", () => {
    if (ended) return;
    if (document.hidden) {
      disconnect();
      say("waiting", "Paused");
    } else {
      connect();
    }
  });

  const touched = new WeakSet();
  document.addEventListener("input", (event) => {
    const form = event.target.closest("form");
    if (form) touched.add(form);
  });

  function replace(id, html) {
    const part = document.getElementById(id);
    if (!part) return;
    const template = document.createElement("template");
    template.innerHTML = html;
    const focused = document.activeElement;
    update(part, template.content.firstElementChild);
    if (focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
  }

  // Makes a node equal to another one of the same name.
  function update(node, wanted) {
    if (node.isEqualNode(wanted)) return;
    if (node.nodeType !== Node.ELEMENT_NODE) {
      node.data = wanted.data;
      return;
    }
    const isForm = node.nodeName === "FORM";
    if (isForm && (touched.has(node) || node.contains(document.activeElement))) return;
    const isKept = (name) => name === "open" && node.nodeName === "DETAILS";
    for (const { name } of [...node.attributes]) {
      if (!wanted.hasAttribute(name) && !isKept(name)) node.removeAttribute(name);
    }
    for (const { name, value } of wanted.attributes) {
      if (node.getAttribute(name) !== value && !isKept(name)) node.setAttribute(name, value);
    }
    updateChildren(node, wanted);
  }

  // A child with a key is the same as the child that had this key before, wherever it was. Another child is the same as the one
  // at its place.
  function updateChildren(node, wanted) {
    const keyOf = (child) => (child.dataset ? child.dataset.key : undefined);
    const isAlike = (child, other) =>
      child && child.nodeName === other.nodeName && child.id === other.id && !keyOf(child);
    const keys = new Set([...wanted.children].map(keyOf));
    const byKey = new Map();
    for (const child of [...node.children]) {
      const key = keyOf(child);
      if (key === undefined) continue;
      if (keys.has(key)) byKey.set(key, child);
      else child.remove();
    }
    let next = node.firstChild;
    for (const child of [...wanted.childNodes]) {
      const key = keyOf(child);
      const same = key !== undefined ? byKey.get(key) : isAlike(next, child) ? next : undefined;
      if (!same) {
        node.insertBefore(child, next);
      } else {
        if (same === next) next = next.nextSibling;
        else node.insertBefore(same, next);
        update(same, child);
      }
    }
    while (next) {
      const last = next;
      next = next.nextSibling;
      last.remove();
    }
  }

  connect();
})();
