// Predicted metrics at task weights that the reader sets.
"use strict";

const Explorer = (() => {
  const { node, html, titled, colour, extent, short, circle, legend, stroke } = Charts;
  const {
    data, tasks, several, points, truths, models, quantities, byId, isUp, named, describe, marker,
  } = Study;
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
      const output = html("output", { "aria-live": "off" }); // the slider itself tells its value
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
    const caption = html("figcaption", {}, "Predicted truth of ", select, html("span", { class: "screen" }, " – drag the point"));
    const drawing = html("div");
    host.append(caption, drawing);
    paintTriangle = () => {
      const q = Number(select.value), model = models[q], size = 26;
      const { svg, place, weightsAt, edges } = Charts.triangle(drawing, tasks, `Predicted truth of ${named(q)} over the task weights; the sliders below move its point, too`, 380);
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
  return { build: buildExplorer, draw: () => paintTriangle() };
})();
