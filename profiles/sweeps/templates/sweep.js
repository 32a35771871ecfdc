"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const plot = document.getElementById("plot");
  const form = document.getElementById("axes");
  const detail = document.getElementById("detail");
  const beside = document.getElementById("with");
  const margin = { left: 74, right: 22, top: 18, bottom: 48 };
  const reach = 36; // pixels from the pointer to the point that it means
  const state = { shown: null, pinned: null, places: new Map() };
  if (!data.points.length || !data.objectives.length) return;

  const make = (name, attributes = {}, text = "") => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.textContent = text;
    return element;
  };
  const objective = (name) => data.objectives.find((one) => one.name === name);

  // Units: an axis has one, so that its ticks are round in it.
  const units = { s: [["ms", 1e-3], ["s", 1], ["min", 60], ["h", 3600]], bytes: [["KiB", 1024], ["MiB", 1024 ** 2], ["GiB", 1024 ** 3], ["TiB", 1024 ** 4]] };
  const unitOf = (unit, top) => (units[unit] ? units[unit].findLast(([, size]) => size <= top) || units[unit][0] : [unit === "1" ? "" : unit, 1]);
  const roundStep = (about) => { const power = 10 ** Math.floor(Math.log10(about)); return [10, 5, 2, 1].map((f) => f * power).find((step) => step <= about * 1.0001); };
  const scaleOf = (name, from, to) => {
    const one = objective(name);
    const numbers = data.points.map((point) => point.values[name]).filter((value) => typeof value === "number");
    const [word, size] = unitOf(one.unit, Math.max(...numbers.map(Math.abs), 0));
    let low = Math.min(...numbers) / size, high = Math.max(...numbers) / size;
    if (!numbers.length) { low = 0; high = 1; }
    const pad = (high - low) * 0.08 || Math.abs(high) * 0.1 || 1;
    const bottom = low >= 0 ? Math.max(0, low - pad) : low - pad;
    const top = high + pad;
    const best = one.better === "lower" ? bottom : top;
    const step = roundStep((top - bottom) / 4);
    const ticks = [];
    for (let count = Math.ceil(bottom / step); count * step <= top; count += 1) ticks.push(Number((count * step).toPrecision(12)));
    const at = (value) => from + ((value - bottom) / (top - bottom)) * (to - from);
    return { ticks: ticks.map((tick) => [at(tick), String(Number(tick.toPrecision(6)))]), place: (value) => at(value === "best" ? best : value / size), title: word ? `${one.title}, ${word}` : one.title, better: one.better };
  };

  // What no other point beats in the two axes.
  const cost = (point, name) => { const value = point.values[name]; if (value === "best") return -Infinity; return objective(name).better === "lower" ? value : -value; };
  const front = (points, x, y) => points.filter((one) => !points.some((other) => cost(other, x) <= cost(one, x) && cost(other, y) <= cost(one, y) && (cost(other, x) < cost(one, x) || cost(other, y) < cost(one, y))));

  const draw = () => {
    const [x, y] = [form.elements.x.value, form.elements.y.value];
    const { width, height } = plot.getBoundingClientRect();
    const across = scaleOf(x, margin.left, width - margin.right);
    const up = scaleOf(y, height - margin.bottom, margin.top);
    const points = data.points.filter((point) => point.values[x] !== null && point.values[y] !== null);
    const best = front(points, x, y);
    const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": `${up.title} over ${across.title}` });
    for (const [place, text] of across.ticks) {
      svg.append(make("line", { class: "grid", x1: place, x2: place, y1: margin.top, y2: height - margin.bottom }));
      svg.append(make("text", { x: place, y: height - margin.bottom + 16, "text-anchor": "middle" }, text));
    }
    for (const [place, text] of up.ticks) {
      svg.append(make("line", { class: "grid", x1: margin.left, x2: width - margin.right, y1: place, y2: place }));
      svg.append(make("text", { x: margin.left - 8, y: place + 4, "text-anchor": "end" }, text));
    }
    const words = { lower: "less is better", higher: "more is better" };
    svg.append(make("text", { class: "title", x: (margin.left + width - margin.right) / 2, y: height - 10, "text-anchor": "middle" }, `${across.title} (${words[across.better]})`));
    const middle = (margin.top + height - margin.bottom) / 2;
    svg.append(make("text", { class: "title", x: 16, y: middle, "text-anchor": "middle", transform: `rotate(-90 16 ${middle})` }, `${up.title} (${words[up.better]})`));
    const ordered = [...best].sort((one, other) => across.place(one.values[x]) - across.place(other.values[x]));
    if (ordered.length > 1) svg.append(make("polyline", { class: "front", points: ordered.map((point) => `${across.place(point.values[x])},${up.place(point.values[y])}`).join(" ") }));
    state.places.clear();
    for (const point of points) {
      const [cx, cy] = [across.place(point.values[x]), up.place(point.values[y])];
      state.places.set(point.id, [cx, cy]);
      const group = make("g", { class: "point", role: "button", tabindex: 0, "data-point": point.id, "aria-pressed": "false", "aria-label": `${point.title}: ${point.texts[x]}, ${point.texts[y]}` });
      group.append(make("circle", { class: "halo", cx, cy, r: 12 }));
      if (point.picked) group.append(make("circle", { class: "star", cx, cy, r: 9.5 }));
      group.append(make("circle", { class: `dot c${point.colour}${best.includes(point) ? "" : " beaten"}`, cx, cy, r: 5.5 }));
      group.addEventListener("focus", () => show(point));
      group.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); pin(point); } });
      svg.append(group);
    }
    svg.addEventListener("pointermove", (event) => { const point = nearest(event); if (point) show(point); });
    svg.addEventListener("click", (event) => { const point = nearest(event); if (point) pin(point); });
    plot.replaceChildren(svg);
    mark();
  };

  const nearest = (event) => {
    const box = plot.getBoundingClientRect();
    const distance = ([cx, cy]) => Math.hypot(event.clientX - box.left - cx, event.clientY - box.top - cy);
    const [closest] = [...state.places].map(([id, place]) => [distance(place), id]).sort(([one], [other]) => one - other);
    return closest && closest[0] <= reach ? data.points.find((point) => point.id === closest[1]) : null;
  };
  const mark = () => {
    for (const element of document.querySelectorAll("[data-point]")) {
      element.classList.toggle("shown", element.dataset.point === state.shown?.id);
      if (element.hasAttribute("aria-pressed")) element.setAttribute("aria-pressed", String(element.dataset.point === state.pinned?.id));
    }
  };
  const compare = () => { document.getElementById("beside").src = beside.value === data.exact ? data.exacts[state.shown.exact] || "data:," : data.beside[beside.value]; };
  const show = (point) => {
    state.shown = point;
    detail.hidden = false;
    detail.querySelector(".name").textContent = point.title;
    document.getElementById("crop").src = point.crop;
    compare();
    detail.querySelector(".values").replaceChildren(...data.objectives.flatMap((one) => {
      const [term, value] = [document.createElement("dt"), document.createElement("dd")];
      term.textContent = one.title;
      value.textContent = point.texts[one.name];
      return [term, value];
    }));
    mark();
  };
  const pin = (point) => {
    state.pinned = point;
    document.getElementById("pinned").hidden = false;
    document.querySelector("#pinned strong").textContent = point.title;
    document.getElementById("command").textContent = point.command;
    show(point);
  };

  for (const [place, name] of [["x", data.start[0]], ["y", data.start[1]]]) {
    const select = form.elements[place];
    select.append(...data.objectives.map((one) => new Option(one.title, one.name, false, one.name === name)));
    select.addEventListener("change", draw);
  }
  const others = [...(Object.keys(data.exacts).length ? [data.exact] : []), ...Object.keys(data.beside)];
  beside.append(...others.map((name) => new Option(name, name)));
  beside.addEventListener("change", compare);
  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const row of document.querySelectorAll("#rows tbody tr")) row.addEventListener("click", () => pin(data.points.find((point) => point.id === row.dataset.point)));
  document.getElementById("copy").addEventListener("click", () => navigator.clipboard?.writeText(document.getElementById("command").textContent));
  new ResizeObserver(draw).observe(plot);
  draw();
  show(data.points.find((point) => point.picked) || data.points[0]);
})();
