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

// A page that cannot be loaded again says why, until it can. An answer such as 404 comes from a server that is there.
const away = "The server does not answer. What this page shows may be old.";
const refusals = {
  403: "You may not look at this any more. What this page shows may be old.",
  404: "What this page shows is deleted.",
};

let told = "";

function tell(reason) {
  told = reason;
  const stale = document.getElementById("stale");
  if (!stale) return;
  stale.hidden = !reason;
  if (reason) stale.querySelector(".errornote").textContent = reason;
}

document.addEventListener("htmx:sendError", () => tell(away));
document.addEventListener("htmx:responseError", (event) => {
  const status = event.detail.xhr.status;
  if (refusals[status]) tell(refusals[status]);
  else if (status >= 500) tell(away);
});
document.addEventListener("htmx:afterOnLoad", (event) => {
  // It follows an error too. The banner, which every page asks for, tells nothing about a part that is refused.
  if (event.detail.xhr.status >= 400) return;
  if (told === away || event.detail.target.id !== "banner") tell("");
});
