"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const PAGE = 24;

  // Tables sort by a click on a heading: by data-value where a cell has one, else by its text.
  const key = (row, column) => {
    const cell = row.cells[column];
    const text = cell ? cell.dataset.value ?? cell.textContent.trim() : "";
    return text !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
  };
  const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
  for (const table of all("table.sortable")) {
    const headings = all("thead th", table);
    headings.forEach((heading, column) => {
      if (!heading.textContent.trim()) return;
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = heading.textContent;
      heading.replaceChildren(button);
      button.addEventListener("click", () => {
        const down = heading.getAttribute("aria-sort") === "ascending";
        headings.forEach((other) => other.removeAttribute("aria-sort"));
        heading.setAttribute("aria-sort", down ? "descending" : "ascending");
        const body = table.tBodies[0];
        const groups = [];
        for (const row of body.rows) {
          // A remark stays below the row that it belongs to.
          if (row.classList.contains("more")) groups[groups.length - 1].push(row);
          else groups.push([row]);
        }
        groups.sort((a, b) => compare(key(a[0], column), key(b[0], column)) * (down ? -1 : 1));
        body.append(...groups.flat());
      });
    });
  }

  // Recipes are found by words and decision.
  const find = document.getElementById("find");
  const only = document.getElementById("only");
  if (find && only) {
    const cases = all(".case");
    const apply = () => {
      const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const part of cases) {
        const text = part.dataset.text.toLowerCase();
        const fits = words.every((word) => text.includes(word)) && (!only.value || part.dataset.decision === only.value);
        part.hidden = !fits;
        const row = document.querySelector(`#overview tr[data-case="${part.id}"]`);
        if (row) row.hidden = !fits;
        shown += fits;
      }
      document.getElementById("count").textContent = `${shown} of ${cases.length}`;
    };
    find.addEventListener("input", apply);
    only.addEventListener("change", apply);
    apply();
  }

  // The map: a cell says in words what it is; colours by format, saturation or underflow.
  for (const map of all(".map")) {
    const detail = map.querySelector(".detail");
    const showDetail = (event) => {
      const cell = event.target.closest("[title]");
      if (cell) detail.textContent = cell.title;
    };
    for (const kind of ["click", "focusin", "mouseover"]) map.addEventListener(kind, showDetail);
    const mode = map.querySelector(".mode");
    mode.addEventListener("change", () => {
      map.classList.remove("by-saturation", "by-underflow");
      if (mode.value !== "format") map.classList.add(`by-${mode.value}`);
    });
  }

  // Changed answers: filtered and sorted, some at a time.
  for (const gallery of all(".gallery")) {
    const cards = all(".card", gallery);
    const box = gallery.querySelector(".cards");
    const field = (name) => gallery.querySelector(`.tools .${name}`);
    const [kind, where, order, words, count] = ["kind", "where", "order", "words", "count"].map(field);
    const more = gallery.querySelector("button.more");
    const severity = { lost: 0, changed: 1, won: 2 };
    const orders = {
      worst: (a, b) => severity[a.dataset.kind] - severity[b.dataset.kind] || b.dataset.fall - a.dataset.fall,
      fall: (a, b) => b.dataset.fall - a.dataset.fall,
      before: (a, b) => b.dataset.before - a.dataset.before,
    };
    let limit = PAGE;
    const apply = () => {
      const text = words.value.toLowerCase();
      const fits = (card) =>
        (!kind.value || card.dataset.kind === kind.value) &&
        (!where.value || card.dataset.where === where.value) &&
        (!text || card.textContent.toLowerCase().includes(text));
      cards.sort((a, b) => orders[order.value](a, b) || a.dataset.rank - b.dataset.rank);
      let found = 0;
      for (const card of cards) card.hidden = !fits(card) || ++found > limit;
      box.append(...cards);
      count.textContent = `${Math.min(found, limit)} of ${found}`;
      more.hidden = found <= limit;
    };
    for (const control of [kind, where, order, words]) {
      control.addEventListener("input", () => {
        limit = PAGE;
        apply();
      });
    }
    more.addEventListener("click", () => {
      limit += PAGE;
      apply();
    });
    apply();
  }

  for (const button of all("button.copy")) {
    if (!navigator.clipboard) continue;
    button.hidden = false;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(button.parentElement.querySelector(".patch").textContent);
      button.textContent = "Copied";
    });
  }
})();
