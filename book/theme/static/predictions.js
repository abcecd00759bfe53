// Asks before it answers: a guess is kept in this browser, and held against what was measured. Sends nothing anywhere.
(() => {
  "use strict";

  const KEY = "flashkat-predictions";
  let unsaved = {}; // where a browser keeps nothing, guesses last as long as the page

  const guesses = () => {
    try {
      const kept = JSON.parse(localStorage.getItem(KEY) ?? "{}");
      return Object.fromEntries(Object.entries(kept).filter(([, one]) => Number.isFinite(one?.guess)));
    } catch {
      return unsaved;
    }
  };

  const keep = (all) => {
    unsaved = all;
    try {
      localStorage.setItem(KEY, JSON.stringify(all));
    } catch { /* a full or forbidden store */ }
  };

  // "4", "4.5", "4,5", "1,000", "2e9", "4 ms"; NaN for what is no number
  const number = (typed, unit) => {
    let text = typed.trim().replace(/−/g, "-");
    if (unit && text.endsWith(unit)) text = text.slice(0, -unit.length).trim();
    if (/^-?\d{1,3}([, ]\d{3})+(\.\d+)?$/.test(text)) text = text.replace(/[, ]/g, "");
    text = text.replace(/^(-?\d+),(\d+)$/, "$1.$2");
    return /^[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$/i.test(text) ? Number(text) : NaN;
  };

  // The words of flashkat_lite.lab.predicting
  const figure = (value) => {
    const size = Math.abs(value);
    const plain = Number.isInteger(value) ? size < 1e15 : size >= 1e-4 && size < 1e15;
    return plain ? value.toLocaleString("en-GB", { maximumFractionDigits: 10 }) : String(value);
  };
  const amount = (value, unit) => {
    const shown = Number.isInteger(value) ? value : Number(value.toPrecision(4));
    return `${figure(shown)} ${unit}`.trim();
  };
  const factor = (times) => figure(Number(times.toPrecision(2)));
  const compared = (guess, value, unit) => {
    const mine = `Your guess, ${amount(guess, unit)},`;
    const side = guess > value ? "high" : "low";
    if (guess === value) return `${mine} is right.`;
    if (guess <= 0 || value <= 0) return `${mine} is too ${side}.`;
    const times = Math.max(guess / value, value / guess);
    return times < 1.05 ? `${mine} is within 5 %.` : `${mine} is ${factor(times)} times too ${side}.`;
  };

  // In a chapter

  const ask = (box) => {
    const { source, unit } = box.dataset;
    const value = Number(box.dataset.value);
    const [field, said, answer] = ["input", ".fk-predict-said", "details"].map((part) => box.querySelector(part));
    const below = [...document.querySelectorAll(".fk-reveal")].find((one) => one.dataset.source === source);
    const compared_below = below?.appendChild(document.createElement("span"));
    let seen = false;

    const compare = (guess) => {
      said.textContent = compared(guess, value, unit);
      answer.open = true;
      if (below) compared_below.textContent = ` ${said.textContent}`;
    };
    box.querySelector("form").addEventListener("submit", (event) => {
      event.preventDefault();
      const guess = number(field.value, unit);
      field.setAttribute("aria-invalid", String(!Number.isFinite(guess)));
      if (!Number.isFinite(guess)) {
        said.textContent = `A number${unit ? ` of ${unit}` : ""}, please, such as 0.5 or 2e9.`;
        return;
      }
      keep({ ...guesses(), [source]: { guess, ...(seen && { seen }) } });
      compare(guess);
    });
    const before = guesses()[source];
    if (before) {
      field.value = before.guess;
      compare(before.guess);
      seen = Boolean(before.seen);
    }
    // A guess after the answer is no guess any more: the page of all draws it hollow, and leaves it out of the spread.
    answer.addEventListener("toggle", () => { seen ||= answer.open; });
  };

  // The page of all

  const svg = (tag, attributes, text) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    return element;
  };

  const spread = (logs) => {
    const ordered = logs.map(Math.abs).sort((a, b) => a - b), middle = ordered.length / 2;
    return 10 ** ((ordered[Math.floor(middle)] + ordered[Math.ceil(middle) - 1]) / 2);
  };

  const draw = (page) => {
    const kept = guesses(), parts = [];
    const [drawing, said, tools] = ["drawing", "said", "tools"].map((name) => page.querySelector(`.fk-predictions-${name}`));
    let given = 0;
    for (const section of page.querySelectorAll(".fk-predictions-part")) {
      const part = { name: section.dataset.part, logs: [], seen: [] };
      for (const item of section.querySelectorAll("li")) {
        const mine = kept[item.dataset.source], value = Number(item.dataset.value);
        const line = item.querySelector(".fk-predictions-mine");
        line.textContent = mine ? `${amount(value, item.dataset.unit)} measured. ${compared(mine.guess, value, item.dataset.unit)}` : "";
        if (mine) given += 1;
        if (mine && mine.guess > 0 && value > 0) (mine.seen ? part.seen : part.logs).push(Math.log10(mine.guess / value));
      }
      parts.push(part);
    }
    const all = parts.flatMap((part) => part.logs), asked = page.querySelectorAll("li").length;
    said.textContent = !asked ? "No chapter asks yet."
      : !given ? `No guesses in this browser yet; the chapters ask ${asked} times.`
      : `${given} of ${asked} guesses given.` + (all.length ? ` Half of them are off by a factor of ${factor(spread(all))} or less.` : "");
    drawing.replaceChildren(...(given ? [picture(parts, drawing)] : []));
    tools.hidden = !given;
  };

  const picture = (parts, drawing) => {
    const shown = parts.filter((part) => part.logs.length + part.seen.length);
    const width = Math.max(280, Math.min(drawing.parentElement.clientWidth, 700)), row = 46, top = 8, side = 14;
    const reach = Math.max(1, Math.ceil(Math.max(0, ...shown.flatMap((part) => [...part.logs, ...part.seen]).map(Math.abs))));
    const x = (log) => width / 2 + (log / reach) * (width / 2 - side);
    const height = top + row * shown.length + 40;
    const root = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img" });
    const step = Math.max(1, Math.ceil((2 * reach + 1) * 62 / width));
    for (let decade = -reach; decade <= reach; decade += 1) {
      const right = decade === 0;
      root.append(svg("line", { x1: x(decade), x2: x(decade), y1: top, y2: top + row * shown.length, class: right ? "fk-right" : "" }));
      if (decade % step) continue;
      const anchor = decade === -reach ? "start" : decade === reach ? "end" : "middle";
      const ends = decade === -reach ? -side : decade === reach ? side : 0;
      const name = right ? "right" : `${decade < 0 ? "1/" : "×"}${figure(10 ** Math.abs(decade))}`;
      root.append(svg("text", { x: x(decade) + ends, y: height - 24, "text-anchor": anchor }, name));
    }
    root.append(svg("text", { x: width / 2, y: height - 5, "text-anchor": "middle", class: "fk-said" }, "your guess over the measured value"));
    const words = [];
    shown.forEach((part, number) => {
      const y = top + row * number + 33;
      const off = part.logs.length ? spread(part.logs) : null;
      if (off) {
        const half = Math.log10(off);
        root.append(svg("line", { x1: x(-half), x2: x(half), y1: y, y2: y, class: "fk-spread" }));
      }
      const title = off ? `${part.name}: half within × ${factor(off)}` : part.name;
      root.append(svg("text", { x: 2, y: y - 16 }, title));
      const count = part.logs.length + part.seen.length;
      words.push(`${title}, ${count} guess${count === 1 ? "" : "es"}`);
      for (const log of part.logs) root.append(svg("circle", { cx: x(log), cy: y, r: 5 }));
      for (const log of part.seen) root.append(svg("circle", { cx: x(log), cy: y, r: 5, class: "fk-seen" }));
    });
    root.setAttribute("aria-label", `Guesses over measured values, on a logarithmic axis. ${words.join("; ")}.`);
    return root;
  };

  const save = (page) => {
    const kept = guesses(), file = {};
    for (const item of page.querySelectorAll("li")) {
      const { source, question, unit, value } = item.dataset, mine = kept[source];
      if (mine) file[source] = { question, unit, guess: mine.guess, value: Number(value) };
    }
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(file, null, 1)], { type: "application/json" }));
    link.download = "predictions.json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };

  const button = (text, act) => {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = text;
    made.addEventListener("click", act);
    return made;
  };

  const showAll = (page) => {
    const clear = () => {
      if (!confirm("Forget all guesses in this browser?")) return;
      keep({});
      draw(page);
      page.querySelector("a")?.focus();
    };
    page.querySelector(".fk-predictions-tools").append(button("Save to a file", () => save(page)), button("Forget all", clear));
    draw(page);
    addEventListener("resize", () => draw(page));
  };

  document.addEventListener("DOMContentLoaded", () => {
    document.querySelectorAll(".fk-predict[data-value]").forEach(ask);
    document.querySelectorAll(".fk-predictions").forEach(showAll);
  });
})();
