// Charts in plain SVG. Text is set as text, never as markup.
"use strict";

const Charts = (() => {
  const NS = "http://www.w3.org/2000/svg";
  // Neither end vanishes on a light ground or on a dark one.
  const STOPS = [[96, 78, 186], [48, 116, 190], [32, 156, 152], [116, 190, 78], [240, 186, 40]];

  function node(tag, attributes = {}, ...children) {
    const made = tag.startsWith("html:")
      ? document.createElement(tag.slice(5)) : document.createElementNS(NS, tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (value !== null && value !== undefined) made.setAttribute(key, value);
    }
    made.append(...children.filter((c) => c !== null && c !== undefined));
    return made;
  }

  const html = (tag, attributes, ...children) => node(`html:${tag}`, attributes, ...children);
  const titled = (shape, text) => (shape.append(node("title", {}, text)), shape);

  // A sequential scale that is ordered in lightness, so that it reads without hue as well.
  function colour(share) {
    const s = Math.min(Math.max(share, 0), 1) * (STOPS.length - 1);
    const i = Math.min(Math.floor(s), STOPS.length - 2), f = s - i;
    const mixed = STOPS[i].map((c, k) => Math.round(c + f * (STOPS[i + 1][k] - c)));
    return `rgb(${mixed.join(",")})`;
  }

  function extent(values, margin = 0) {
    const known = values.filter((v) => v !== null && Number.isFinite(v));
    if (!known.length) return [0, 1];
    let low = known[0], high = known[0];
    for (const v of known) { low = Math.min(low, v); high = Math.max(high, v); }
    const gap = (high - low || Math.abs(high) * 0.1 || 1) * margin;
    return high > low ? [low - gap, high + gap] : [low - (gap || 0.5), high + (gap || 0.5)];
  }

  function ticks([low, high], count) {
    const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((f) => f * power).find((s) => s >= rough);
    const found = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) {
      found.push(Number((k * step).toPrecision(12)));
    }
    return found;
  }

  const label = (v) => (Math.abs(v) >= 1e4 ? v.toLocaleString("en") : String(v));
  const short = (v) => (v === null ? "–" : Number(v.toPrecision(4)).toString());
  const line = ([a, b], [c, d]) => (v) => c + ((v - a) / (b - a)) * (d - c);

  function frame(width, height, what) {
    return node("svg", {
      width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": what,
    });
  }

  // Axes with a grid; returns the drawing and the two scales.
  function axes(host, { xs, ys, x, y, what, height = 340 }) {
    const width = Math.max(host.clientWidth, 240);
    const yTicks = ticks(ys, 5);
    const left = 14 + 7 * Math.max(...yTicks.map((t) => label(t).length)) + 18;
    const box = { left, right: width - 12, top: 10, bottom: height - 42 };
    const svg = frame(width, height, what);
    const sx = line(xs, [box.left, box.right]), sy = line(ys, [box.bottom, box.top]);
    for (const t of yTicks) {
      svg.append(node("line", { x1: box.left, x2: box.right, y1: sy(t), y2: sy(t), stroke: "var(--grid)" }));
      svg.append(node("text", { x: box.left - 6, y: sy(t) + 4, "text-anchor": "end" }, label(t)));
    }
    for (const t of ticks(xs, Math.max(Math.floor(width / 110), 2))) {
      svg.append(node("line", { x1: sx(t), x2: sx(t), y1: box.top, y2: box.bottom, stroke: "var(--grid)" }));
      svg.append(node("text", { x: sx(t), y: box.bottom + 17, "text-anchor": "middle" }, label(t)));
    }
    svg.append(node("text", { x: (box.left + box.right) / 2, y: height - 6, "text-anchor": "middle", class: "name" }, clip(x, width / 8)));
    const up = node("text", { x: 0, y: 0, "text-anchor": "middle", class: "name" }, clip(y, height / 8));
    up.setAttribute("transform", `translate(12 ${(box.top + box.bottom) / 2}) rotate(-90)`);
    svg.append(up);
    return { svg, sx, sy, box };
  }

  function clip(text, length) {
    return text.length > length ? `${text.slice(0, Math.max(length - 1, 3))}…` : text;
  }

  const circle = (x, y, r, fill, more = {}) => node("circle", { cx: x, cy: y, r, fill, ...more });
  function square(x, y, r, fill, more = {}) {
    return node("rect", { x: x - r, y: y - r, width: 2 * r, height: 2 * r, fill, ...more });
  }

  function legend(entries) {
    const list = html("ul", { class: "legend" });
    for (const [shape, text] of entries) {
      const icon = node("svg", { width: 14, height: 10, "aria-hidden": "true" }, shape);
      list.append(html("li", {}, icon, text));
    }
    return list;
  }

  const stroke = (colourOf, dash) =>
    node("line", { x1: 0, x2: 14, y1: 5, y2: 5, stroke: colourOf, "stroke-width": 2, "stroke-dasharray": dash });

  function fill(host, caption, ...children) {
    host.replaceChildren(...(caption ? [html("figcaption", {}, caption)] : []), ...children);
  }

  // Of values between two ends the colour, the brightest for the best: the largest, or the lowest.
  function shading(ends, up) {
    return line(ends, up ? [0, 1] : [1, 0]);
  }

  // The scale of a map: its colours with the ends' values.
  function bar([low, high], up) {
    const svg = node("svg", { width: 220, height: 26, "aria-hidden": "true" });
    for (let i = 0; i < 44; i++) {
      svg.append(node("rect", { x: i * 5, y: 0, width: 5.5, height: 9, fill: colour(up ? i / 43 : 1 - i / 43) }));
    }
    svg.append(node("text", { x: 0, y: 23 }, short(low)));
    svg.append(node("text", { x: 220, y: 23, "text-anchor": "end" }, short(high)));
    return svg;
  }

  // Corners of the triangle of three task weights: the first on top, then right, then left.
  function triangle(host, names, what, wanted = 420) {
    const width = Math.max(host.clientWidth, 240), side = Math.min(width - 60, wanted);
    const high = side * Math.sqrt(3) / 2, height = high + 62, middle = width / 2;
    const corners = [[middle, 26], [middle + side / 2, 26 + high], [middle - side / 2, 26 + high]];
    const svg = frame(width, height, what);
    const place = (w) => [0, 1].map((k) => w.reduce((sum, v, t) => sum + v * corners[t][k], 0));
    function weightsAt(px, py) {
      const top = 1 - (py - 26) / high;
      const right = ((px - middle) / side) + (1 - top) / 2;
      const found = [top, right, 1 - top - right].map((v) => Math.max(v, 0));
      const sum = found.reduce((a, b) => a + b);
      return found.map((v) => v / sum);
    }
    function edges(parent) {
      parent.append(node("polygon", {
        points: corners.map((c) => c.join(",")).join(" "), fill: "none", stroke: "var(--soft)",
      }));
      for (const share of [0.25, 0.5, 0.75]) {
        for (let t = 0; t < 3; t++) {
          const ends = [1, 2].map((k) => place([0, 1, 2].map((i) =>
            i === t ? share : i === (t + k) % 3 ? 1 - share : 0)));
          parent.append(node("line", {
            x1: ends[0][0], y1: ends[0][1], x2: ends[1][0], y2: ends[1][1],
            stroke: "var(--soft)", "stroke-opacity": 0.25,
          }));
        }
      }
    }
    const at = [[middle, 16, "middle"], [corners[1][0], 26 + high + 20, "middle"], [corners[2][0], 26 + high + 20, "middle"]];
    at.forEach(([x, y, anchor], t) => svg.append(
      node("text", { x, y, "text-anchor": anchor, class: "name" }, clip(names[t], side / 14))));
    return { svg, place, weightsAt, edges };
  }

  return {
    node, html, titled, colour, extent, ticks, short, line, frame, axes, clip, circle, square,
    legend, stroke, fill, bar, shading, triangle,
  };
})();
