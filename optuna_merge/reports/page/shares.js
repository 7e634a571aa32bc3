// Two tasks: both metrics over the share of one, and the best share under a bound of its metric.
"use strict";

const Shares = (() => {
  const { node, html, titled, extent, short, circle, stroke, legend } = Charts;
  const { data, tasks, points, byId, isUp, inkOf, kinds, describe, marker } = Study;
  const sections = data.shares;
  const chosen = () => sections[Number(byId("shares-of").value)];
  const answer = () => chosen().answers[Number(byId("shares-keep").value)];

  function build() {
    const of = byId("shares-of"), keep = byId("shares-keep");
    sections.forEach((s, i) => of.append(html("option", { value: i }, s.general)));
    const offer = () => {
      keep.replaceChildren(...chosen().answers.map((a, i) =>
        html("option", { value: i }, `${Number((100 * a.keep).toPrecision(6))} %`)));
      keep.value = chosen().chosen;
    };
    offer();
    of.addEventListener("change", () => (offer(), draw()));
    keep.addEventListener("change", draw);
  }

  function panel(host, s, k) {
    const task = k ? s.general : s.own, t = tasks.indexOf(task), g = tasks.indexOf(s.general);
    const { mean, low, high } = s.curves[k], { best, bound } = answer();
    const seen = points.filter((p) => p.previewed && p.previews[t + 1] !== null);
    const found = points.filter((p) => p.truths[t + 1] !== null);
    const ys = extent([...mean, ...low, ...high, ...seen.map((p) => p.previews[t + 1]),
      ...found.map((p) => p.truths[t + 1]), ...(k ? [bound] : [])], 0.05);
    const last = mean.length - 1, at = best === null ? "" : `; ${short(mean[Math.round(best * last)])} at the best share, ${best.toFixed(2)}`;
    const sense = isUp(t + 1) ? "" : " (lower is better)";
    const { svg, sx, sy, box } = Charts.axes(host, {
      xs: [0, 1], ys, x: `share of ${s.general} (task weight)`, y: `${task}${sense}`, height: 250,
      what: `Expected metric of ${task}${sense} over the share of ${s.general}: ${short(mean[0])} at share 0, ` +
        `${short(mean[last >> 1])} at 0.5, ${short(mean[last])} at 1${at}${k ? `; the bound is ${short(bound)}` : ""}`,
    });
    const path = (values, from) => values.map((v, i) => `${from && !i ? "M" : "L"}${sx(s.shares[i]).toFixed(1)} ${sy(v).toFixed(1)}`);
    svg.append(node("path", {
      d: `${path(high, true).join("")}${path(low, false).reverse().join("")}Z`, fill: "var(--promoted)", "fill-opacity": 0.18,
    }));
    svg.append(node("path", { d: path(mean, true).join(""), fill: "none", stroke: "var(--promoted)", "stroke-width": 2 }));
    if (k) {
      svg.append(node("line", { x1: box.left, x2: box.right, y1: sy(bound), y2: sy(bound), stroke: "var(--third)", "stroke-width": 1.5, "stroke-dasharray": "6 4" }));
    }
    if (best !== null) {
      svg.append(node("line", { x1: sx(best), x2: sx(best), y1: box.top, y2: box.bottom, stroke: "var(--ink)", "stroke-width": 1.5, "stroke-dasharray": "2 3" }));
    }
    for (const p of seen) {
      svg.append(titled(circle(sx(p.weights[g]), sy(p.previews[t + 1]), 3, "none", { stroke: "var(--preview)" }), describe(p, t + 1)));
    }
    for (const p of found) {
      svg.append(titled(marker(p, sx(p.weights[g]), sy(p.truths[t + 1]), 4, inkOf[p.kind]), describe(p, t + 1)));
    }
    return svg;
  }

  function draw() {
    const s = chosen();
    byId("shares-told").replaceChildren(...answer().told.map((sentence) => html("li", {}, sentence)));
    const hosts = [byId("shares-own"), byId("shares-general")];
    hosts.forEach((host, k) => Charts.fill(host, k ? s.general : s.own, panel(host, s, k)));
    byId("shares-legend").replaceChildren(legend([
      [stroke("var(--promoted)"), "expected, with the 90% interval of the expected value"],
      [circle(6, 5, 3, "none", { stroke: "var(--preview)" }), "previews"], ...kinds(),
      [stroke("var(--third)", "6 4"), "what must be kept"], [stroke("var(--ink)", "2 3"), "best share"],
    ]));
  }

  return { build, draw };
})();
