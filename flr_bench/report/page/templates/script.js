"use strict";
/* Sorting is added here, so that without scripts the tables are plain ones and no button does nothing. */
(() => {
  const shown = (cell) => (cell.dataset.value !== undefined ? Number(cell.dataset.value) : null);
  const compare = (a, b, place) => {
    const [x, y] = [a.cells[place], b.cells[place]];
    const [m, n] = [shown(x), shown(y)];
    if (m !== null && n !== null) return m - n;
    if (m !== null || n !== null) return 0;
    return x.textContent.trim().localeCompare(y.textContent.trim(), "en", { numeric: true });
  };
  /* Places without a number stay last, whichever way the others go. */
  const empty = (row, place, numeric) => (numeric ? shown(row.cells[place]) === null : !row.cells[place].textContent.trim());

  const sort = (table, head, place, way) => {
    const body = table.tBodies[0];
    const rows = Array.from(body.rows);
    const numeric = rows.some((row) => shown(row.cells[place]) !== null);
    const sign = way === "ascending" ? 1 : -1;
    rows.sort((a, b) => {
      if (way === "none") return a.dataset.place - b.dataset.place;
      const gaps = empty(a, place, numeric) - empty(b, place, numeric);
      return gaps || sign * compare(a, b, place) || a.dataset.place - b.dataset.place;
    });
    body.append(...rows);
    table.toggleAttribute("data-sorted", way !== "none");
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    if (way !== "none") head.setAttribute("aria-sort", way);
  };

  for (const table of document.querySelectorAll("table.data")) {
    const rows = Array.from(table.tBodies[0].rows);
    if (rows.length < 2) continue;
    rows.forEach((row, place) => { row.dataset.place = place; });
    Array.from(table.tHead.rows[0].cells).forEach((head, place) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      const numeric = head.classList.contains("number");
      const ways = numeric ? ["descending", "ascending", "none"] : ["ascending", "descending", "none"];
      button.addEventListener("click", () => {
        const now = ways.indexOf(head.getAttribute("aria-sort"));
        sort(table, head, place, ways[(now + 1) % ways.length]);
      });
      head.append(button);
    });
  }

  /* Print shows everything: what is folded on a screen cannot be unfolded on paper. */
  const folded = [];
  addEventListener("beforeprint", () => {
    for (const part of document.querySelectorAll("details:not([open])")) { part.open = true; folded.push(part); }
  });
  addEventListener("afterprint", () => { for (const part of folded.splice(0)) part.open = false; });
})();
