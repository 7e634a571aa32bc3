// The study in the JSON of #data, and what all figures say alike.
"use strict";

const Study = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { html, short, circle, square } = Charts;
  const tasks = data.tasks, several = data.score === null;
  const names = [data.score, ...tasks];
  const quantities = names.map((_, q) => q).filter((q) => q > 0 || !several);
  const fields = ["trial", "kind", "baseline", "weights", "previews", "truths", "feasible", "anchor", "previewed"];
  const points = data.points.map((p) => Object.fromEntries(fields.map((field, i) => [field, p[i]])));
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
    const made = p.anchor ? " (made of the truth)" : "";
    return `${what}\n${written(p.weights)}\npreview ${short(p.previews[q])}${made}, truth ${short(p.truths[q])}${kept}`;
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

  return {
    data, tasks, several, names, quantities, points, truths, models, byId, isUp, named, inkOf,
    kinds, written, describe, marker, options,
  };
})();
