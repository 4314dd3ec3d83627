// The chart of the first page stays in place, and gets new figures each time the moving part of the page is loaded.
document.addEventListener("htmx:afterSwap", () => {
  const figures = document.querySelector("[data-speed]");
  const canvas = document.querySelector("#speed canvas");
  const chart = canvas && Chart.getChart(canvas);
  if (!figures || !chart) return;
  const fresh = JSON.parse(figures.dataset.speed);
  chart.data.labels = fresh.labels;
  chart.data.datasets[0].data = fresh.datasets[0].data;
  chart.update("none");
});

// A page that cannot be loaded again says so, until it can.
for (const [event, isStale] of [
  ["htmx:sendError", true],
  ["htmx:responseError", true],
  ["htmx:afterOnLoad", false],
]) {
  document.addEventListener(event, () => {
    document.getElementById("stale")?.toggleAttribute("hidden", !isStale);
  });
}
