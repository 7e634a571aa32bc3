// The page: what its choices show, and when it is drawn.
"use strict";

(() => {
  const { byId, options, tasks, quantities } = Study;
  const { maps, scatter, front, cost, bars } = Figures;

  options("map-of", quantities[0]).addEventListener("change", maps);
  options("scatter-of", quantities[0]).addEventListener("change", scatter);
  if (byId("front")) {
    const of = tasks.map((_, t) => t + 1);
    options("front-x", 1, of).addEventListener("change", front);
    options("front-y", 2, of).addEventListener("change", front);
  }
  if (byId("mixture-of")) {
    const choose = () => {
      for (const lines of document.querySelectorAll("[data-form]")) {
        lines.hidden = lines.dataset.form !== byId("mixture-of").value;
      }
    };
    byId("mixture-of").addEventListener("change", choose);
    choose();
  }
  Explorer.build();
  if (byId("shares")) Shares.build();

  function draw() {
    Explorer.draw();
    bars();
    if (byId("shares")) Shares.draw();
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
