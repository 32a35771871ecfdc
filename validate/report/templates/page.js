"use strict";
(() => {
  const root = document.documentElement;
  const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];

  // The theme: as the system has it, light, dark.
  const button = document.getElementById("theme");
  const themes = ["auto", "light", "dark"];
  const showTheme = () => { button.querySelector("span").textContent = root.dataset.theme || "auto"; };
  button.hidden = false;
  button.addEventListener("click", () => {
    const next = themes[(themes.indexOf(root.dataset.theme || "auto") + 1) % themes.length];
    if (next === "auto") delete root.dataset.theme; else root.dataset.theme = next;
    try { localStorage.setItem("livemoments-theme", next); } catch { /* kept for this visit only */ }
    showTheme();
  });
  showTheme();

  // Tables that sort by their columns' heads; rows without a number stay last.
  const number = (text) => { const value = parseFloat(text.replace(/,/g, "")); return Number.isNaN(value) ? null : value; };
  const sortBy = (table, column, down) => {
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => {
      const text = (row.cells[column]?.textContent ?? "").trim();
      return { row, text, value: number(text) };
    });
    const numeric = table.tHead.rows[0].cells[column].classList.contains("n");
    const turn = down ? -1 : 1;
    rows.sort((a, b) => {
      if (!numeric) return turn * a.text.localeCompare(b.text, "en", { numeric: true });
      if (a.value === null || b.value === null) return (a.value === null) - (b.value === null);
      return turn * (a.value - b.value);
    });
    body.append(...rows.map(({ row }) => row));
  };
  for (const table of all("table.rows")) {
    all("th", table.tHead).forEach((head, column) => {
      const sorter = document.createElement("button");
      sorter.type = "button";
      sorter.append(...head.childNodes);
      head.append(sorter);
      sorter.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        all("th", table.tHead).forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        sortBy(table, column, down);
      });
    });
  }

  // The filter over the images' rows.
  const form = document.getElementById("filter");
  if (form) {
    const rows = [...document.getElementById("rows").tBodies[0].rows];
    const apply = () => {
      const find = form.elements.find.value.trim().toLowerCase();
      const which = form.elements.which.value;
      let shown = 0;
      for (const row of rows) {
        const fits = row.textContent.toLowerCase().includes(find)
          && (which !== "failed" || row.classList.contains("fail"))
          && (which !== "shown" || row.querySelector("a"));
        row.hidden = !fits;
        shown += fits ? 1 : 0;
      }
      form.querySelector("output").textContent = `${shown} of ${rows.length}`;
    };
    form.hidden = false;
    form.addEventListener("input", apply);
    form.addEventListener("submit", (event) => event.preventDefault());
    apply();
  }

  // Sliders: the left picture is cut off at the line, the right one lies below it.
  const words = { output: "restored", error: "error map", reference: "key photo" };
  for (const figure of all("figure.compare")) {
    const stage = figure.querySelector(".stage");
    const line = stage.querySelector("input");
    const pictures = new Map(all("img", stage).map((image) => [image.dataset.role, image]));
    const pressed = (side) => figure.querySelector(`button[data-side=${side}][aria-pressed=true]`)?.dataset.show;
    const show = () => {
      const sides = { left: pressed("left"), right: pressed("right") };
      for (const [role, image] of pictures) {
        image.hidden = role !== sides.left && role !== sides.right;
        image.classList.toggle("over", role === sides.left);
      }
      for (const side of ["left", "right"]) {
        const tag = stage.querySelector(`.tag.${side}`);
        tag.textContent = words[sides[side]] || sides[side] || "";
        tag.hidden = !sides[side];
      }
      const alone = !sides.left || !sides.right;
      line.hidden = alone;
      stage.querySelector(".split").hidden = alone;
      for (const legend of all("[data-for]", figure)) legend.hidden = legend.dataset.for !== sides.right;
    };
    const move = () => {
      stage.style.setProperty("--x", `${line.value}%`);
      line.setAttribute("aria-valuetext", `${Math.round(line.value)} percent ${stage.querySelector(".tag.left").textContent}`);
    };
    figure.querySelector(".sides").hidden = false;
    for (const choice of all(".sides button", figure)) {
      choice.addEventListener("click", () => {
        for (const other of all(".sides button", figure)) {
          if (other.dataset.side === choice.dataset.side) other.setAttribute("aria-pressed", String(other === choice));
        }
        show();
        move();
      });
    }
    line.addEventListener("input", move);
    show();
    move();
  }

  // A closed group opens for printing, and where a link leads into it.
  const open = () => { const target = location.hash.length > 1 && document.getElementById(location.hash.slice(1)); if (target) target.closest("details")?.setAttribute("open", ""); };
  addEventListener("hashchange", open);
  addEventListener("beforeprint", () => all("details").forEach((group) => { group.open = true; }));
  open();

  root.dataset.rows = String(all("#rows tbody tr").length);
  root.dataset.panels = String(all("figure.compare").length);
  root.dataset.overflow = String(Math.max(0, root.scrollWidth - root.clientWidth));
  root.dataset.ready = "true";
})();
