// The figures of what was previewed and finetuned.
"use strict";

const Figures = (() => {
  const { node, titled, colour, extent, short, circle, square, stroke, legend } = Charts;
  const {
    data, tasks, several, names, points, truths, byId, isUp, named, inkOf, kinds, written,
    describe, marker,
  } = Study;

  function span(values) {
    const [low, high] = extent(values);
    return `${short(low)} to ${short(high)}`;
  }

  // Maps -----------------------------------------------------------------------------------

  function drawMap(host, of, q, caption) {
    const values = of.map(([, v]) => v), ends = extent(values), share = Charts.shading(ends, isUp(q));
    if (!of.length) return Charts.fill(host, `${caption}: none yet`);
    const up = isUp(q) ? 1 : -1;
    const sorted = [...of].sort((a, b) => up * (a[1] - b[1])); // the best ones on top
    const top = sorted[sorted.length - 1];
    const what = `${caption} over the task weights: ${named(q)} from ${short(ends[0])} to ${short(ends[1])}; ` +
      `the best one, ${short(top[1])}, at ${written(top[0].weights)}`;
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
        { stroke: "var(--ink)", "stroke-opacity": 0.6, "stroke-width": 0.8 }), describe(p, q)));
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
        points: path, fill: "none", stroke: colour(share(value)), "stroke-width": i >= of.length - 5 ? 2.6 : 1.6,
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
      what: `Truths of ${names[q] || "the score"} against previews, ${of.length} finetunes: previews from ` +
        `${span(of.map((p) => p.previews[q]))}, truths from ${span(of.map((p) => p.truths[q]))}`,
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
      // What the truth itself made proves nothing: hollow.
      svg.append(titled(marker(p, sx(p.previews[q]), sy(p.truths[q]), 4.5, p.anchor ? "var(--card)" : inkOf[p.kind],
        { stroke: inkOf[p.kind], "stroke-width": p.anchor ? 1.8 : 0 }), describe(p, q)));
    }
    if (of.some((p) => p.anchor)) {
      entries.push([square(6, 5, 3.5, "var(--card)", { stroke: inkOf.baseline, "stroke-width": 1.8 }), "hollow: the preview was made of this truth"]);
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
      what: `${data.curve_of} against training steps: ` + (best.length
        ? `${short(best[0][2])} after ${best[0][0]} steps, ${short(best[best.length - 1][2])} after ${curve[curve.length - 1][0]}` : "none yet"),
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
    const svg = Charts.frame(width, height, "True metrics by task at the best weights, at uniform weights and of each task alone: the numbers are in the table below");
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
        const first = series.every(([, of]) => of[t] === null || (isUp(t + 1) ? of[t] <= value : of[t] >= value));
        svg.append(node("text", { x: Math.max(x(value), x(0)) + 6, y: y + 11, class: first ? "first" : null }, value.toPrecision(4)));
      });
    });
    const lower = tasks.filter((_, t) => !isUp(t + 1));
    const sense = `, the best of each task in bold${lower.length ? `; lower is better: ${lower.join(", ")}` : ""}`;
    Charts.fill(host, `True metrics on validation data${sense}`, svg, legend(series.map(([name]) =>
      [square(6, 5, 4, inks[name]), { best: "best weights", uniform: "uniform weights", alone: "the task alone" }[name]])));
  }
  return { maps, scatter, front, cost, bars };
})();
