// Figures that the reader moves: drawn here, in a page or in JupyterLab, from numbers that the page brings along.
// A figure is a list of controls and a function from their values to drawings and a sentence; nothing moves unasked.
(() => {
  "use strict";

  const FALLBACK = {
    ink: "currentColor", muted: "#666666", grid: "#d9d9d9", paper: "#ffffff", blue: "#0072b2", orange: "#d55e00",
    green: "#009e73", purple: "#cc79a7", sky: "#56b4e9", yellow: "#e69f00",
  };
  const colour = (name) => `var(--fk-${name}, ${FALLBACK[name.replace("-text", "")]})`;

  // Drawing

  function element(space, tag, attributes = {}, ...children) {
    const made = space ? document.createElementNS(space, tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children.flat());
    return made;
  }
  const draw = (tag, attributes, ...children) => element("http://www.w3.org/2000/svg", tag, attributes, ...children);
  const page = (tag, attributes, ...children) => element(null, tag, attributes, ...children);
  const near = (number) => +number.toFixed(1); // the same digits whoever draws
  const paint = (fill, stroke = "none", width = 1) => `fill: ${fill && colour(fill)}; stroke: ${stroke === "none" ? stroke : colour(stroke)}; stroke-width: ${width}`;
  const write = (x, y, words, { size = 12, anchor = "start", fill = "ink", weight = 400 } = {}) =>
    draw("text", { x: near(x), y: near(y), style: `fill: ${colour(fill)}; font: ${weight} ${size}px var(--fk-sans, sans-serif); text-anchor: ${anchor}` }, words);
  const rectangle = (x, y, width, height, style, radius = 3) =>
    draw("rect", { x: near(x), y: near(y), width: near(width), height: near(height), rx: radius, style });
  const curve = (points, stroke, width = 2, dash = "none") =>
    draw("path", { d: points.map(([x, y], i) => `${i ? "L" : "M"}${near(x)} ${near(y)}`).join(""),
      style: `fill: none; stroke: ${colour(stroke)}; stroke-width: ${width}; stroke-dasharray: ${dash}; stroke-linejoin: round` });
  const sheet = (width, height, label, ...children) =>
    draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label }, ...children);

  const digits = (number) => Math.round(number).toLocaleString("en");
  const milliseconds = (ms) => (ms < 1 ? `${Math.round(1000 * ms)} µs` : `${+ms.toPrecision(3)} ms`);
  function spell(seconds) {
    if (seconds < 90) return `${Math.round(seconds)} seconds`;
    return seconds < 5400 ? `${Math.round(seconds / 60)} minutes` : `${(seconds / 3600).toFixed(1)} hours`;
  }

  // The three backward kernels side by side, on one clock

  const RISE = 0.07; // of the fastest kernel's time: how long a drawn tile is on its way
  const TILES = 60;
  const BANDS = [["registers", 8, 46], ["shared memory", 62, 30], ["L2", 100, 48], ["HBM", 156, 50]];
  const PLAY = 9; // seconds for the linear part of the clock

  function lane(rung, fastest, ms, wide) {
    const share = Math.min(1, ms / rung.ms), way = RISE * fastest, each = rung.ms / TILES;
    const phone = wide < 200; // tiles keep clear of the words
    const marks = BANDS.map(([name, y, height]) => [
      rectangle(1, y, wide - 2, height, paint("paper", "muted")),
      write(8, y + 14, phone ? name.replace(" memory", "") : name, { size: 11, fill: "muted" }),
    ]).flat();
    const level = { hbm: 190, shared: 77, registers: 37, cache: 132 };
    const between = (from, to, part) => from + (to - from) * Math.max(0, Math.min(1, part));
    const staged = rung.kind === "stationary";
    for (let tile = 0; tile < TILES; tile++) {
      const age = ms - tile * each, stay = rung.kind === "atomic" ? each : staged ? 0.5 * way : 0.9 * way;
      if (age <= 0 || age >= 2 * way + stay) continue;
      const x = wide - 30 - 22 * (tile % (phone ? 2 : 6));
      if (age < way + stay) {
        let y = between(level.hbm, level.registers, age / way);
        if (staged && age < way) y = age < 0.5 * way ? between(level.hbm, level.shared, (3 * age) / way) : between(level.shared, level.registers, (4 * (age - 0.75 * way)) / way);
        marks.push(rectangle(x, y - 5, 8, 10, paint("blue"), 1.5), rectangle(x + 9, y - 5, 8, 10, paint("sky"), 1.5));
      } else {
        marks.push(rectangle(x + 4, between(level.registers, level.hbm, (age - way - stay) / way) - 5, 8, 10, paint("green"), 1.5));
        if (rung.kind === "block") {
          const y = between(level.shared, level.cache, (1.6 * (age - way - stay)) / way);
          marks.push(draw("circle", { cx: near(x - 4), cy: near(y), r: 4, style: paint("orange") }));
        }
      }
    }
    if (rung.kind === "atomic" && ms > way && share < 1) {
      const moving = 7 * (((ms - way) / fastest * 12) % 1);
      const row = phone ? 11 : 22;
      for (let i = 0; i < 3 * row; i++) {
        const x = wide - 14 - 7 * (i % row) + moving, y = 116 + 11 * Math.floor(i / row);
        marks.push(draw("circle", { cx: near(x), cy: near(y), r: 3, style: paint("orange") }));
      }
    }
    if (staged) {
      const height = near(26 * share);
      marks.push(rectangle(8, 51 - height, 12, height, paint("orange"), 1.5));
      const after = (ms - rung.ms) / way;
      if (after > 0 && after < 1.5) marks.push(draw("circle", { cx: 14, cy: near(between(50, level.hbm, after)), r: 4, style: paint("orange") }));
    }
    marks.push(rectangle(1, 214, wide - 2, 6, paint("grid")), rectangle(1, 214, Math.max(0.1, (wide - 2) * share), 6, paint(share < 1 ? "blue" : "green")));
    const moved = `${(share * rung.bytes / 1e9).toFixed(2)} of ${(rung.bytes / 1e9).toFixed(2)} GB moved`;
    const added = rung.atomics ? `${digits(share * rung.atomics)} of ${digits(rung.atomics)} additions at the L2` : "no addition leaves a thread";
    const state = share < 1 ? `${share < 0.01 ? (100 * share).toFixed(2) : Math.floor(100 * share)} % done` : `done after ${milliseconds(rung.ms)}`;
    const again = share === 1 && ms > 2 * rung.ms ? `, ${digits(Math.floor(ms / rung.ms))} times by now` : "";
    return { marks, lines: [moved, added, state + again], share };
  }

  const race = (given) => ({
    controls: [
      { name: "size", label: "Columns", options: given.cases.map((one) => one.title), value: given.start ?? 0 },
      { name: "time", label: "Time", min: 0, max: 1000, value: 420, say: (value, all) => milliseconds(race.clock(given, all.size, value)) },
    ],
    play: { control: "time", seconds: PLAY / 0.85 },
    source: given.source,
    draw({ size, time }, width) {
      const { rungs } = given.cases[size], ms = race.clock(given, size, time);
      const fastest = Math.min(...rungs.map((rung) => rung.ms)), slowest = Math.max(...rungs.map((rung) => rung.ms));
      const wide = width < 560 ? 112 : 240;
      const panels = rungs.map((rung) => {
        const { marks, lines } = lane(rung, fastest, ms, wide);
        const label = `${rung.name}: tiles of x and dy rise from HBM to the registers, dx goes back. ${lines.join("; ")}.`;
        return [page("strong", {}, rung.name), sheet(wide, 222, label, ...marks), ...lines.map((line) => page("p", {}, line))];
      });
      const scale = PLAY / race.span(given, size), late = rungs.find((rung) => rung.ms === slowest);
      const said = ms < slowest
        ? `After ${milliseconds(ms)}. Blue: x and dy. Green: dx. Orange: sums. In the slow motion of Play ${late.name.toLowerCase()} would be done in ${spell(scale * slowest)}.`
        : `After ${milliseconds(ms)} all are done. Blue: x and dy. Green: dx. Orange: sums.`;
      return { panels, said };
    },
  });
  race.span = (given, size) => {
    const [, second] = given.cases[size].rungs.map((rung) => rung.ms).sort((p, q) => q - p);
    return 1.1 * second;
  };
  // Linear until all but the slowest are done; the last part runs through the decades to the slowest one's end.
  race.clock = (given, size, value) => {
    const span = race.span(given, size), end = Math.max(...given.cases[size].rungs.map((rung) => rung.ms));
    return value <= 850 ? (span * value) / 850 : span * (end / span) ** ((value - 850) / 150);
  };

  // What additions allow, and what memory allows

  const roofline = (given) => ({
    controls: [
      { name: "size", label: "Columns", options: given.cases.map((one) => one.title), value: given.start ?? 0 },
      { name: "tile", label: "Elements summed before an addition", min: 0, max: 23, value: 10, say: (value) => digits(2 ** value) },
    ],
    source: given.source,
    draw({ size, tile }, width) {
      const { rungs, limit } = given.cases[size], queue = rungs.find((rung) => rung.kind === "atomic");
      const rate = queue.atomics / queue.ms / 1e6, memory = limit.bytes / limit.ms / 1e6; // additions a ns; bytes a ns
      const each = queue.atomics / queue.bytes; // additions a byte where every element adds
      const height = 380, left = 54, right = width - 12, top = 28, bottom = height - 50;
      const low = -8.2, high = 0.4, floor = 0, roof = 4; // powers of ten: additions a byte; GB/s
      const across = (adds) => left + (right - left) * (Math.max(low, Math.log10(adds)) - low) / (high - low);
      const up = (speed) => bottom - (bottom - top) * (Math.log10(speed) - floor) / (roof - floor);
      const allowed = (adds) => Math.min(memory, rate / adds);
      const marks = [];
      for (let power = -8; power <= 0; power += width < 500 ? 4 : 2) {
        marks.push(curve([[across(10 ** power), top], [across(10 ** power), bottom]], "grid", 1));
        marks.push(write(across(10 ** power), bottom + 17, power ? `10${String(power).replace(/./g, (c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)])}` : "1", { anchor: "middle", size: 12 }));
      }
      for (let power = 0; power <= 4; power++) {
        marks.push(curve([[left, up(10 ** power)], [right, up(10 ** power)]], "grid", 1));
        marks.push(write(left - 6, up(10 ** power) + 4, digits(10 ** power), { anchor: "end" }));
      }
      marks.push(write((left + right) / 2, height - 12, "additions at the L2 for each byte of HBM", { anchor: "middle" }));
      marks.push(write(left - 6, 12, "GB/s", { anchor: "end" }));
      const edge = 10 ** high, knee = rate / memory;
      marks.push(curve([[left, up(memory)], [across(knee), up(memory)], [across(edge), up(rate / edge)]], "green", 2.5));
      marks.push(write(left + 8, up(memory) - 7, `memory: ${digits(memory)} GB/s`, { fill: "green-text" }));
      marks.push(write(across(60 * knee) - 12, up(memory / 60), `the queue: ${rate.toFixed(2)} additions a ns`, { anchor: "end", fill: "green-text" }));
      for (const rung of rungs) {
        const speed = rung.bytes / rung.ms / 1e6, adds = rung.atomics / rung.bytes, x = across(adds || 1e-12);
        marks.push(draw("circle", { cx: near(x), cy: near(up(speed)), r: 6, style: paint(rung.kind === "atomic" ? "orange" : "blue") }));
        const atRight = x > 0.45 * width;
        marks.push(write(x + (atRight ? -10 : 10), up(speed) + 19, `${rung.name}${rung.atomics || width < 500 ? "" : " (none)"}`, { anchor: atRight ? "end" : "start", weight: 600 }));
      }
      const adds = each / 2 ** tile, x = across(adds), y = up(allowed(adds));
      marks.push(draw("path", { d: `M${near(x)} ${near(y - 9)}l8 9l-8 9l-8 -9z`, style: paint("yellow", "ink", 1.2) }));
      const bound = memory < rate / adds ? "memory decides" : "the queue decides";
      const label = `Roofline of additions: at most ${digits(memory)} GB/s, and ${rate.toFixed(2)} additions a nanosecond. `
        + rungs.map((rung) => `${rung.name}: ${digits(rung.bytes / rung.ms / 1e6)} GB/s`).join("; ");
      const said = `With ${digits(2 ** tile)} element${tile ? "s" : ""} summed before a set of additions, the roof allows ${allowed(adds) < 10 ? allowed(adds).toPrecision(2) : digits(allowed(adds))} GB/s: ${bound}. `
        + `The queue is as fast as the atomic kernel found it. A measured kernel below the roof is held by something else.`;
      return { panels: [[sheet(width, height, label, ...marks)]], said };
    },
  });

  // A rational function of ten numbers

  // Four times the largest number that a coefficient starts from, as 1, 2 or 5 and zeros: a key then moves a small one little.
  const reach = (given, i) => {
    const most = 4 * Math.max(0.01, ...given.presets.map((one) => Math.abs(one.table[i]))), ten = 10 ** Math.floor(Math.log10(most));
    return ten * [1, 2, 5, 10].find((times) => times * ten >= most);
  };

  const rational = (given) => ({
    controls: [
      { name: "start", label: "Start from", options: given.presets.map((one) => one.name), value: 0,
        sets: (value) => Object.fromEntries(given.presets[value].table.map((number, i) => [given.names[i], number])) },
      ...given.names.map((name, i) => ({
        name, label: name, min: -reach(given, i), max: reach(given, i), step: reach(given, i) / 100, value: given.presets[0].table[i],
        say: (value) => `${+value.toPrecision(3)}`,
      })),
    ],
    draw(state, width) {
      const numbers = given.names.map((name) => state[name]), split = given.names.findIndex((name) => name.startsWith("b"));
      const a = numbers.slice(0, split), b = numbers.slice(split).map(Math.abs);
      const P = (x) => a.reduceRight((sum, c) => sum * x + c, 0);
      const Q = (x) => 1 + Math.abs(x) * b.reduceRight((sum, c) => sum * Math.abs(x) + c, 0);
      const F = (x) => P(x) / Q(x), slope = (x) => (F(x + 1e-4) - F(x - 1e-4)) / 2e-4;
      const height = 320, left = 34, right = width - 10, top = 12, bottom = height - 30;
      const across = (x) => left + (right - left) * (x + 4) / 8, up = (y) => bottom - (bottom - top) * (Math.max(-3, Math.min(5, y)) + 3) / 8;
      const marks = [];
      for (let x = -4; x <= 4; x += 2) marks.push(curve([[across(x), top], [across(x), bottom]], "grid", 1), write(across(x), bottom + 18, `${x}`, { anchor: "middle" }));
      for (let y = -2; y <= 4; y += 2) marks.push(curve([[left, up(y)], [right, up(y)]], "grid", 1), write(left - 6, up(y) + 4, `${y}`, { anchor: "end" }));
      const trace = (f) => Array.from({ length: 161 }, (_, i) => -4 + i / 20).map((x) => [across(x), up(f(x))]);
      marks.push(curve(trace(Q), "muted", 1.5, "2 4"), curve(trace(slope), "orange", 1.5, "6 4"), curve(trace(F), "blue", 3));
      const words = (x) => (Math.abs(x) < 1e4 ? x.toFixed(2) : x.toExponential(1));
      const said = `F(1) = ${words(F(1))}, its derivative ${words(slope(1))}, Q(1) = ${words(Q(1))}; F(4) = ${words(F(4))}, Q(4) = ${words(Q(4))}. Blue: F. Orange: its derivative. Grey: Q, which is never below 1, so no coefficient makes F infinite.`;
      return { panels: [[sheet(width, height, `A rational function and its derivative. ${said}`, ...marks)]], said };
    },
  });

  // In the page

  const figures = { race, roofline, rational };
  let made = 0; // radio buttons need a name of their own
  const still = () => window.matchMedia("(prefers-reduced-motion: reduce)").matches;

  function start(box) {
    const figure = figures[box.dataset.figure](JSON.parse(box.dataset.settings));
    const state = Object.fromEntries(figure.controls.map((control) => [control.name, control.value]));
    const stage = page("div", { class: "fk-motion-stage" }), said = page("p", { class: "fk-motion-said" });
    const shown = {};
    let width = 0;

    function redraw() {
      const { panels, said: sentence } = figure.draw(state, Math.round(Math.max(320, Math.min(760, width || 720))));
      stage.replaceChildren(...panels.map((panel) => page("div", {}, ...panel)));
      said.textContent = sentence;
      for (const control of figure.controls) {
        const { input, output, choices } = shown[control.name];
        if (choices) choices[state[control.name]].checked = true;
        else {
          input.value = state[control.name];
          output.textContent = control.say(state[control.name], state);
          input.setAttribute("aria-valuetext", output.textContent);
        }
      }
    }

    const many = figure.controls.length > 4 ? " fk-many" : "";
    const form = page("div", { class: `fk-motion-controls${many}`, role: "group", "aria-label": "Move the figure" });
    for (const control of figure.controls) {
      const choose = (value) => {
        state[control.name] = value;
        Object.assign(state, control.sets?.(value));
        redraw();
      };
      if (control.options) {
        const name = `fk-${control.name}-${(made += 1)}`;
        const choices = control.options.map((_, value) => page("input", { type: "radio", name, value }));
        const labels = choices.map((choice, value) => page("label", {}, choice, control.options[value]));
        choices.forEach((choice, value) => choice.addEventListener("input", () => choose(value)));
        form.append(page("fieldset", {}, page("legend", {}, control.label), ...labels));
        shown[control.name] = { choices };
      } else {
        const input = page("input", { type: "range", min: control.min, max: control.max, step: control.step ?? 1 });
        const output = page("output", {});
        input.addEventListener("input", () => choose(+input.value));
        form.append(page("label", {}, page("span", {}, control.label), input, output));
        shown[control.name] = { input, output };
      }
    }
    if (figure.play) form.append(player(figure, state, redraw));
    box.replaceChildren(form, stage, said, ...(figure.source ? [page("p", { class: "fk-motion-source" }, figure.source)] : []));
    redraw();
    new ResizeObserver(() => {
      if (Math.abs(stage.clientWidth - width) < 2) return;
      width = stage.clientWidth;
      redraw();
    }).observe(box);
  }

  // A button that runs one control from where it is to its end; where motion is unwanted, a tenth of the way at a time.
  function player(figure, state, redraw) {
    const control = figure.controls.find((one) => one.name === figure.play.control), span = control.max - control.min;
    const button = page("button", { type: "button" }, "Play");
    let running = 0;
    const stop = () => {
      cancelAnimationFrame(running);
      running = 0;
      button.textContent = "Play";
    };
    button.addEventListener("click", () => {
      if (running) return stop();
      const from = state[control.name] >= control.max ? control.min : state[control.name];
      if (still()) {
        state[control.name] = Math.min(control.max, from + span / 10);
        return redraw();
      }
      const began = performance.now();
      button.textContent = "Pause";
      const step = (now) => {
        state[control.name] = Math.min(control.max, from + (span * Math.max(0, now - began)) / 1000 / figure.play.seconds);
        redraw();
        if (state[control.name] >= control.max || !button.isConnected) stop();
        else running = requestAnimationFrame(step);
      };
      running = requestAnimationFrame(step);
    });
    return button;
  }

  function startAll() {
    for (const box of document.querySelectorAll(".fk-motion:not([data-started])")) {
      box.dataset.started = "";
      start(box);
    }
  }
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", startAll);
  else startAll();
})();
