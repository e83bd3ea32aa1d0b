/* What the pages can do beyond HTML: say that values are live, draw the days, copy a secret. All works without. */
"use strict";

(() => {
  const SPOKEN_EVERY_MS = 30000;

  function live() {
    const told = document.getElementById("told");
    const pulse = document.getElementById("pulse");
    if (!document.getElementById("live") || !told || !pulse || !window.htmx) return;
    let spokenAt = Date.now();
    const show = (state, text) => {
      pulse.className = "pulse " + state;
      document.getElementById("pulse-text").textContent = text;
    };
    show("on", "Live");
    // Nobody looks at a hidden page: it asks again when it is shown.
    document.addEventListener("htmx:beforeRequest", (event) => {
      if (document.hidden) event.preventDefault();
    });
    document.addEventListener("htmx:afterRequest", (event) => {
      if (event.detail.successful) show("on", "Live");
      else show("off", "Not reachable; trying again");
    });
    // Screen readers hear a summary now and then, not every figure that moves.
    document.addEventListener("htmx:afterSwap", () => {
      const now = document.getElementById("live").dataset.told;
      if (Date.now() - spokenAt < SPOKEN_EVERY_MS || told.textContent === now) return;
      told.textContent = now;
      spokenAt = Date.now();
    });
  }

  function chart() {
    const place = document.getElementById("chart");
    if (!place || !window.uPlot) return;
    const data = JSON.parse(place.dataset.chart);
    const days = data.days.map((day) => Date.parse(day + "T00:00:00Z") / 1000);
    const usd = (value) =>
      "$" + value.toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: value >= 100 ? 2 : value >= 1 ? 4 : 6 });
    let plot = null;
    const draw = () => {
      const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
      if (plot) plot.destroy();
      place.classList.add("drawn");
      const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
      plot = new uPlot(
        {
          width: place.clientWidth,
          height: 205,
          tzDate: (ts) => uPlot.tzDate(new Date(ts * 1000), "UTC"),
          hooks: { ready: [(self) => self.setLegend({ idx: days.length - 1 }, false)] },
          cursor: { y: false, drag: { x: false, y: false } },
          scales: { x: { range: (_, first, last) => [first - 43200, last + 43200] }, y: { range: (_, low, high) => [Math.min(low, 0), high > 0 ? high * 1.08 : 1] } },
          axes: [
            { ...axis, grid: { show: false }, space: 70, incrs: [86400, 2 * 86400, 7 * 86400],
              values: (_, ticks) => ticks.map((t) => new Date(t * 1000).toLocaleDateString("en", { month: "short", day: "numeric", timeZone: "UTC" })) },
            { ...axis, size: (self, values) => (values ? 18 + 7 * Math.max(...values.map((v) => v.length)) : 50), values: (_, ticks) => ticks.map((v) => "$" + v.toLocaleString("en", { maximumFractionDigits: 6 })) },
          ],
          series: [
            { label: "Day (UTC)", value: (_, ts) => (ts == null ? "–" : new Date(ts * 1000).toISOString().slice(0, 10)) },
            { label: "Spend", fill: colour("--bar"), stroke: colour("--bar"), width: 0, points: { show: false },
              paths: uPlot.paths.bars({ size: [0.7, 40], radius: 0.15 }), value: (_, v) => (v == null ? "–" : usd(v)) },
          ],
        },
        [days, data.usd],
        place
      );
    };
    draw();
    let width = place.clientWidth;
    new ResizeObserver(() => {
      if (plot && place.clientWidth && place.clientWidth !== width) {
        width = place.clientWidth;
        plot.setSize({ width, height: 205 });
      }
    }).observe(place);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  }

  function copying() {
    for (const button of document.querySelectorAll("[data-copy]")) {
      const field = document.getElementById(button.dataset.copy);
      button.hidden = false;
      button.addEventListener("click", async () => {
        field.select();
        try {
          await navigator.clipboard.writeText(field.value);
          button.textContent = "Copied";
        } catch {
          button.textContent = "Press Ctrl+C";
        }
      });
    }
  }

  live();
  chart();
  copying();
})();
