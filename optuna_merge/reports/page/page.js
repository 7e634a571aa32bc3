// The page: figures and the explorer, from the JSON in #data.
"use strict";

(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { node, html, titled, colour, extent, short, circle, square, stroke, legend } = Charts;
  const tasks = data.tasks, several = data.score === null;
  const names = [data.score, ...tasks];
  const quantities = names.map((_, q) => q).filter((q) => q > 0 || !several);
  const points = data.points.map(([trial, kind, baseline, weights, previews, truths, feasible, previewed]) =>
    ({ trial, kind, baseline, weights, previews, truths, feasible, previewed }));
  const truths = points.filter((p) => p.kind !== "preview");
  const models = data.models.map((m) => m && Surrogate.load(m));
  const byId = (id) => document.getElementById(id);
  const isUp = (q) => data.maximize[q];
  const named = (q) => (isUp(q) ? names[q] : `${names[q]} (lower is better)`);
  const inkOf = { promoted: "var(--promoted)", baseline: "var(--baseline)" };
  const kinds = () => [[circle(6, 5, 4, inkOf.promoted), "promoted"], [square(6, 5, 4, inkOf.baseline), "baseline"]];
  const written = (weights) => tasks.map((t, i) => `${t} ${weights[i].toFixed(3)}`).join(", ");

  function describe(p, q) {
    const what = p.baseline ? `${p.baseline} (trial ${p.trial})` : `trial ${p.trial}`;
    const kept = p.feasible ? "" : "\nviolates constraints";
    return `${what}\n${written(p.weights)}\npreview ${short(p.previews[q])}, truth ${short(p.truths[q])}${kept}`;
  }

  function marker(p, x, y, r, fill, more) {
    return (p.kind === "baseline" ? square : circle)(x, y, r, fill, more);
  }

  function options(id, chosen, of = quantities) {
    const select = byId(id);
    for (const q of of) select.append(html("option", { value: q }, named(q)));
    select.value = chosen;
    return select;
  }

  // Maps -----------------------------------------------------------------------------------

  function drawMap(host, of, q, caption) {
    const values = of.map(([, v]) => v), ends = extent(values), share = Charts.shading(ends, isUp(q));
    const what = `${caption}, ${named(q)} from ${short(ends[0])} to ${short(ends[1])}`;
    if (!of.length) return Charts.fill(host, `${caption}: none yet`);
    const up = isUp(q) ? 1 : -1;
    const sorted = [...of].sort((a, b) => up * (a[1] - b[1])); // the best ones on top
    const svg = tasks.length === 3 ? triangleMap(host, sorted, q, share, what)
      : lineMap(host, sorted, q, share, what);
    return Charts.fill(host, caption, svg, Charts.bar(ends, isUp(q)));
  }

  function triangleMap(host, of, q, share, what) {
    const { svg, place, edges } = Charts.triangle(host, tasks, what, 400);
    edges(svg);
    const r = of.length > 200 ? 3.5 : 5;
    for (const [p, value] of of) {
      const [x, y] = place(p.weights);
      svg.append(titled(marker(p, x, y, r, colour(share(value)),
        { stroke: "var(--card)", "stroke-width": 0.8 }), describe(p, q)));
    }
    return svg;
  }

  function lineMap(host, of, q, share, what) {
    const width = Math.max(host.clientWidth, 240), height = 300, top = 14, bottom = height - 44;
    const svg = Charts.frame(width, height, what);
    const x = (t) => tasks.length === 1 ? width / 2 : 30 + (t * (width - 60)) / (tasks.length - 1);
    const y = Charts.line([0, 1], [bottom, top]);
    tasks.forEach((task, t) => {
      svg.append(node("line", { x1: x(t), x2: x(t), y1: top, y2: bottom, stroke: "var(--line)" }));
      const room = Math.max((width - 60) / Math.max(tasks.length - 1, 1) / 7.5, 3);
      const low = tasks.length > 4 && t % 2;
      svg.append(node("text", { x: x(t), y: bottom + (low ? 34 : 18), "text-anchor": "middle", class: "name" },
        Charts.clip(task, tasks.length > 4 ? 2 * room : room)));
    });
    for (const t of [0, 0.5, 1]) {
      svg.append(node("text", { x: 20, y: y(t) + 4, "text-anchor": "end" }, String(t)));
    }
    const faint = of.length > 200 ? 0.35 : 0.75;
    of.forEach(([p, value], i) => {
      const path = p.weights.map((w, t) => `${x(t).toFixed(1)},${y(w).toFixed(1)}`).join(" ");
      svg.append(titled(node("polyline", {
        points: path, fill: "none", stroke: colour(share(value)), "stroke-width": 1.6,
        "stroke-opacity": i >= of.length - 5 ? 1 : faint,
      }), describe(p, q)));
    });
    return svg;
  }

  function maps() {
    const q = Number(byId("map-of").value);
    const known = (of) => points.map((p) => [p, p[of][q]]).filter(([, v]) => v !== null);
    // A preview that was taken over from equal weights is drawn once.
    const seen = known("previews").filter(([p]) => p.previewed), found = known("truths");
    const all = data.n_previews, part = all > seen.length ? ` of ${all.toLocaleString("en")}` : "";
    drawMap(byId("map-previews"), seen, q, `${seen.length.toLocaleString("en")}${part} previews`);
    drawMap(byId("map-truths"), found, q, `${found.length} truths`);
  }

  // Previews and truths ----------------------------------------------------------------------

  function scatter() {
    const q = Number(byId("scatter-of").value), host = byId("scatter");
    const of = truths.filter((p) => p.previews[q] !== null && p.truths[q] !== null);
    if (!of.length) return Charts.fill(host, "No finetune with a preview yet.");
    const xs = extent(of.map((p) => p.previews[q]), 0.06), ys = extent(of.map((p) => p.truths[q]), 0.06);
    const { svg, sx, sy, box } = Charts.axes(host, {
      xs, ys, x: `preview: ${named(q)}`, y: `truth: ${named(q)}`,
      what: `Truths of ${names[q]} against previews, ${of.length} finetunes`,
    });
    const id = "scatter-box";
    svg.append(node("clipPath", { id }, node("rect", {
      x: box.left, y: box.top, width: box.right - box.left, height: box.bottom - box.top,
    })));
    const ruler = (f, ink, dash) => svg.append(node("line", {
      x1: sx(xs[0]), x2: sx(xs[1]), y1: sy(f(xs[0])), y2: sy(f(xs[1])), stroke: ink,
      "stroke-width": 1.5, "stroke-dasharray": dash, "clip-path": `url(#${id})`,
    }));
    ruler((v) => v, "var(--soft)", "5 4");
    const fit = data.lines[q], entries = [...kinds(), [stroke("var(--soft)", "5 4"), "truth = preview"]];
    if (fit) {
      ruler((v) => fit[0] + fit[1] * v, "var(--third)");
      entries.push([stroke("var(--third)"),
        `fit without zero weights: slope ${fit[1].toFixed(2)} (90% interval ${fit[2].toFixed(2)} to ${fit[3].toFixed(2)})`]);
    }
    for (const p of of) {
      svg.append(titled(marker(p, sx(p.previews[q]), sy(p.truths[q]), 4.5, inkOf[p.kind],
        { "fill-opacity": 0.85 }), describe(p, q)));
    }
    return Charts.fill(host, null, svg, legend(entries));
  }

  // Trade-offs -------------------------------------------------------------------------------

  function front() {
    const host = byId("front");
    const a = Number(byId("front-x").value), b = Number(byId("front-y").value);
    const of = truths.filter((p) => p.truths[a] !== null && p.truths[b] !== null);
    const expected = data.front.map(([weights, mean, std]) => ({
      weights, x: mean[a - 1], y: mean[b - 1], dx: std[a - 1], dy: std[b - 1],
    }));
    if (!of.length && !expected.length) return Charts.fill(host, "Nothing is known yet.");
    const xs = extent([...of.map((p) => p.truths[a]), ...expected.map((p) => p.x)], 0.06);
    const ys = extent([...of.map((p) => p.truths[b]), ...expected.map((p) => p.y)], 0.06);
    const { svg, sx, sy } = Charts.axes(host, {
      xs, ys, x: named(a), y: named(b),
      what: `True metrics of ${tasks[a - 1]} and ${tasks[b - 1]}: ${of.length} finetunes and the expected front`,
    });
    for (const p of expected) {
      const hint = `expected: ${written(p.weights)}\n` +
        `${tasks[a - 1]} ${short(p.x)} ± ${short(p.dx)}, ${tasks[b - 1]} ${short(p.y)} ± ${short(p.dy)}`;
      const inside = (scale, value, [low, high]) => scale(Math.min(Math.max(value, low), high));
      svg.append(node("path", {
        d: `M${inside(sx, p.x - p.dx, xs)} ${sy(p.y)}H${inside(sx, p.x + p.dx, xs)}` +
          `M${sx(p.x)} ${inside(sy, p.y - p.dy, ys)}V${inside(sy, p.y + p.dy, ys)}`,
        stroke: "var(--third)", "stroke-opacity": 0.25, fill: "none",
      }));
      svg.append(titled(circle(sx(p.x), sy(p.y), 3.5, "var(--card)", { stroke: "var(--third)", "stroke-width": 1.5 }), hint));
    }
    for (const p of of) {
      const hint = `${describe(p, a).split("\npreview")[0]}\n${tasks[a - 1]} ${short(p.truths[a])}, ${tasks[b - 1]} ${short(p.truths[b])}`;
      svg.append(titled(marker(p, sx(p.truths[a]), sy(p.truths[b]), 4.5, inkOf[p.kind]), hint));
    }
    return Charts.fill(host, null, svg, legend([...kinds(),
      [circle(6, 5, 3.5, "none", { stroke: "var(--third)", "stroke-width": 1.5 }),
        `expected front${tasks.length > 2 ? " of all tasks, seen from one side" : ""}, ± the uncertainty of the expected values, without the noise of a finetune`],
    ]));
  }

  // Cost -------------------------------------------------------------------------------------

  function cost() {
    const host = byId("cost"), curve = data.curve;
    if (!curve.length) return Charts.fill(host, "No finetune has ended yet.");
    const best = curve.filter((c) => c[2] !== null);
    const xs = [0, curve[curve.length - 1][0] * 1.02];
    const ys = extent(curve.flatMap((c) => [c[1], c[2]]), 0.06);
    const { svg, sx, sy } = Charts.axes(host, {
      xs, ys, x: "training steps so far, task runs included", y: several ? data.curve_of : named(0), height: 300,
      what: `${data.curve_of} against training steps`,
    });
    let path = "";
    best.forEach((c, i) => {
      path += i ? `H${sx(c[0])}V${sy(c[2])}` : `M${sx(c[0])} ${sy(c[2])}`;
    });
    svg.append(node("path", { d: path, fill: "none", stroke: "var(--promoted)", "stroke-width": 2 }));
    for (const [steps, value, , trial, kind] of curve) {
      if (value === null) continue;
      svg.append(titled(marker({ kind }, sx(steps), sy(value), 4, inkOf[kind]),
        `trial ${trial}: ${short(value)} after ${steps} steps`));
    }
    const line = [stroke("var(--promoted)"), `${data.curve_of} so far`];
    return Charts.fill(host, null, svg, legend([line, ...(several ? [] : kinds())]));
  }

  // Bars -------------------------------------------------------------------------------------

  function bars() {
    const host = byId("bars"), series = Object.entries(data.bars);
    if (!host || !series.length) return;
    const inks = { best: "var(--promoted)", uniform: "var(--preview)", alone: "var(--baseline)" };
    const width = Math.max(host.clientWidth, 240), row = 17, gap = 16;
    const room = Math.min(140, width * 0.3), right = width - 56;
    const height = tasks.length * (series.length * row + gap);
    const svg = Charts.frame(width, height, "True metrics by task: best weights, uniform weights, each task alone");
    const all = series.flatMap(([, row_]) => row_).filter((v) => v !== null);
    const [low, high] = [Math.min(0, ...all), Math.max(0, ...all) || 1];
    const x = Charts.line([low, high], [room + 8, right]);
    tasks.forEach((task, t) => {
      const top = t * (series.length * row + gap) + gap / 2;
      svg.append(node("text", { x: room, y: top + series.length * row / 2 + 4, "text-anchor": "end", class: "name" },
        Charts.clip(task, room / 7.5)));
      series.forEach(([name, values], s) => {
        const value = values[t];
        if (value === null) return;
        const y = top + s * row;
        svg.append(titled(node("rect", {
          x: Math.min(x(0), x(value)), y, width: Math.max(Math.abs(x(value) - x(0)), 1), height: row - 4, fill: inks[name], rx: 2,
        }), `${task}, ${name}: ${short(value)}`));
        svg.append(node("text", { x: Math.max(x(value), x(0)) + 6, y: y + 11 }, value.toPrecision(4)));
      });
    });
    const lower = tasks.filter((_, t) => !isUp(t + 1));
    const sense = lower.length ? `; lower is better: ${lower.join(", ")}` : "";
    Charts.fill(host, `True metrics on validation data${sense}`, svg, legend(series.map(([name]) =>
      [square(6, 5, 4, inks[name]), { best: "best weights", uniform: "uniform weights", alone: "the task alone" }[name]])));
  }

  // Explorer ---------------------------------------------------------------------------------

  const known = quantities.filter((q) => models[q]);
  const best = points.find((p) => several ? p.baseline === "uniform" : p.trial === data.best)
    || { weights: tasks.map(() => 1 / tasks.length) };
  let weights = [...best.weights];
  const inputs = [], outputs = [], predictions = [];
  let moveHandle = () => {}, paintTriangle = () => {};

  function setWeights(found) {
    weights = found;
    const started = performance.now();
    weights.forEach((w, t) => {
      inputs[t].value = w;
      inputs[t].setAttribute("aria-valuetext", w.toFixed(3));
      outputs[t].textContent = w.toFixed(3);
    });
    for (const show of predictions) show();
    moveHandle();
    explorer.dataset.milliseconds = (performance.now() - started).toFixed(2);
  }

  // The others keep their proportions.
  function setOne(t, value) {
    const rest = weights.reduce((sum, w, i) => (i === t ? sum : sum + w), 0);
    if (tasks.length === 1) return setWeights([1]);
    return setWeights(weights.map((w, i) => {
      if (i === t) return value;
      return rest > 1e-9 ? (w / rest) * (1 - value) : (1 - value) / (tasks.length - 1);
    }));
  }

  const explorer = byId("explorer");

  function buildExplorer() {
    const left = html("div"), right = html("div", { "aria-live": "off" });
    if (!known.length) {
      explorer.append("Nothing is known yet.");
      return;
    }
    if (tasks.length === 3) left.append(buildTriangle());
    tasks.forEach((task, t) => {
      const input = html("input", { type: "range", min: 0, max: 1, step: "any", "aria-label": `weight of ${task}` });
      input.addEventListener("input", () => setOne(t, Number(input.value)));
      input.addEventListener("keydown", (event) => {
        const step = { ArrowLeft: -0.01, ArrowDown: -0.01, ArrowRight: 0.01, ArrowUp: 0.01 }[event.key];
        if (!step) return;
        event.preventDefault();
        setOne(t, Math.min(Math.max(weights[t] + step, 0), 1));
      });
      const output = html("output");
      inputs.push(input);
      outputs.push(output);
      left.append(html("label", { class: "slider" }, html("span", { title: task }, task), input, output));
    });
    const buttons = html("div", { class: "buttons" });
    const add = (text, found) => {
      const button = html("button", { type: "button" }, text);
      button.addEventListener("click", () => setWeights([...found]));
      buttons.append(button);
    };
    if (!several && truths.length) add("best", best.weights);
    add("uniform", tasks.map(() => 1 / tasks.length));
    if (tasks.length > 1) {
      tasks.forEach((task, t) => add(`${task} alone`, tasks.map((_, i) => (i === t ? 1 : 0))));
    }
    left.append(buttons);
    for (const q of known) right.append(buildPrediction(q));
    right.append(legend([
      [stroke("var(--promoted)"), "expected value ± its uncertainty"],
      ...(data.noise.some((n) => n && n[0] !== null)
        ? [[node("rect", { x: 0, y: 4, width: 14, height: 2, fill: "var(--promoted)", "fill-opacity": 0.35 }), "one finetune: its noise on top"]] : []),
      ...(truths.length && !several ? [[node("path", { d: "M7 0V10", stroke: "var(--ink)", "stroke-width": 2 }), "best truth found"]] : []),
      ...(data.limits.length ? [[node("path", { d: "M7 0V10", stroke: "var(--baseline)", "stroke-width": 2 }), "constraint"]] : []),
    ]));
    explorer.append(left, right);
    setWeights(weights);
  }

  function buildPrediction(q) {
    const model = models[q], name = html("span", { title: named(q) }, named(q));
    const [noise, noiseTold] = data.noise[q];
    const value = html("b");
    const block = html("div", { class: "prediction", "data-quantity": q }, html("div", { class: "line" }, name, value));
    const svg = node("svg", { width: "100%", height: 16, viewBox: "0 0 1000 16", preserveAspectRatio: "none", "aria-hidden": "true" });
    const ends = extent(points.flatMap((p) => [p.previews[q], p.truths[q]]), 0.05);
    const x = Charts.line(ends, [0, 1000]);
    const at = (v) => Math.min(Math.max(x(v), 0), 1000);
    svg.append(node("rect", { x: 0, y: 6, width: 1000, height: 4, fill: "var(--grid)" }));
    const spread = node("rect", { y: 3, height: 10, fill: "var(--promoted)", "fill-opacity": 0.35 });
    const single = node("rect", { y: 7, height: 2, fill: "var(--promoted)", "fill-opacity": noise === null ? 0 : 0.35 });
    const centre = node("rect", { y: 1, height: 14, width: 5, fill: "var(--promoted)" });
    svg.append(single, spread, centre);
    if (best.truths && best.truths[q] !== null && !several) {
      svg.append(node("rect", { x: at(best.truths[q]) - 1, y: 0, width: 3, height: 16, fill: "var(--ink)" }));
    }
    const limits = data.limits.filter(([task]) => task === q - 1);
    for (const [, , bound] of limits) {
      svg.append(node("rect", { x: at(bound) - 1, y: 0, width: 3, height: 16, fill: "var(--baseline)" }));
    }
    block.append(svg, html("small", { class: "noise" }, `noise of one finetune: ${noiseTold}`));
    const verdict = html("small", { class: "limit" });
    if (limits.length) block.append(verdict);
    predictions.push(() => {
      const { mean, std } = model.predict(weights);
      value.replaceChildren(`${mean.toFixed(4)} `, html("small", {}, `± ${std.toFixed(4)}`));
      const missed = limits.filter(([, sense, bound]) => (sense === "at_least" ? mean < bound : mean > bound));
      verdict.textContent = limits.map((limit) =>
        `${limit[1].replace("_", " ")} ${short(limit[2])}: ${missed.includes(limit) ? "likely missed" : "likely kept"}`).join(", ");
      block.dataset.mean = mean;
      block.dataset.std = std;
      const reach = Math.hypot(std, noise || 0);
      single.setAttribute("x", at(mean - reach));
      single.setAttribute("width", Math.max(at(mean + reach) - at(mean - reach), 1));
      spread.setAttribute("x", at(mean - std));
      spread.setAttribute("width", Math.max(at(mean + std) - at(mean - std), 1));
      centre.setAttribute("x", at(mean) - 2.5);
    });
    return block;
  }

  // Three tasks: the predicted truth as a map, with the weights as a point to drag.
  function buildTriangle() {
    const host = html("figure"), select = html("select", { "aria-label": "quantity of the map" });
    for (const q of known) select.append(html("option", { value: q }, named(q)));
    const caption = html("figcaption", {}, "Predicted truth of ", select, " – drag the point");
    const drawing = html("div");
    host.append(caption, drawing);
    paintTriangle = () => {
      const q = Number(select.value), model = models[q], size = 26;
      const { svg, place, weightsAt, edges } = Charts.triangle(drawing, tasks, `Predicted truth of ${named(q)} over the task weights`, 380);
      const cells = [];
      for (let i = 0; i < size; i++) {
        for (let j = 0; j < size - i; j++) {
          const up = [[i + 1, j], [i, j + 1], [i, j]], down = [[i + 1, j], [i, j + 1], [i + 1, j + 1]];
          for (const cell of j < size - i - 1 ? [up, down] : [up]) {
            const three = cell.map(([a, b]) => [a / size, b / size, 1 - (a + b) / size]);
            const middle = three[0].map((_, t) => (three[0][t] + three[1][t] + three[2][t]) / 3);
            cells.push([three, model.mean(middle)]);
          }
        }
      }
      const ends = extent(cells.map(([, v]) => v)), share = Charts.shading(ends, isUp(q));
      for (const [three, value] of cells) {
        const fill = colour(share(value));
        svg.append(node("polygon", { points: three.map((w) => place(w).join(",")).join(" "), fill, stroke: fill, "stroke-width": 0.7 }));
      }
      edges(svg);
      for (const p of truths) {
        const [x, y] = place(p.weights);
        svg.append(titled(marker(p, x, y, 3.5, "none", { stroke: "#fff", "stroke-width": 1.6 }), describe(p, q)));
      }
      const handle = node("g", { class: "handle" }, circle(0, 0, 9, "none", { stroke: "#000", "stroke-width": 4 }),
        circle(0, 0, 9, "rgba(255,255,255,0.25)", { stroke: "#fff", "stroke-width": 2 }));
      svg.append(handle);
      moveHandle = () => {
        const [x, y] = place(weights);
        handle.setAttribute("transform", `translate(${x} ${y})`);
      };
      moveHandle();
      svg.classList.add("handle");
      const follow = (event) => {
        const box = svg.getBoundingClientRect();
        setWeights(weightsAt(event.clientX - box.left, event.clientY - box.top));
      };
      svg.addEventListener("pointerdown", (event) => {
        svg.setPointerCapture(event.pointerId);
        follow(event);
      });
      svg.addEventListener("pointermove", (event) => {
        if (svg.hasPointerCapture(event.pointerId)) follow(event);
      });
      drawing.replaceChildren(svg, Charts.bar(ends, isUp(q)));
    };
    select.addEventListener("change", () => paintTriangle());
    return host;
  }

  // ------------------------------------------------------------------------------------------

  options("map-of", quantities[0]).addEventListener("change", maps);
  options("scatter-of", quantities[0]).addEventListener("change", scatter);
  if (byId("front")) {
    const of = tasks.map((_, t) => t + 1);
    options("front-x", 1, of).addEventListener("change", front);
    options("front-y", 2, of).addEventListener("change", front);
  }
  buildExplorer();
  function draw() {
    paintTriangle();
    bars();
    maps();
    scatter();
    if (byId("front")) front();
    cost();
  }
  draw();
  let width = window.innerWidth, timer = 0;
  window.addEventListener("resize", () => {
    if (window.innerWidth === width) return;
    width = window.innerWidth;
    clearTimeout(timer);
    timer = setTimeout(draw, 100);
  });
})();
