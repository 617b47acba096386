"use strict";
/* Draws the curves of the report; needs Plotly, and the data in #data. */
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const dashes = ["solid", "dash", "dot", "dashdot", "longdash",
                  "longdashdot"];
  const root = document.documentElement;
  const boxes = [...document.querySelectorAll("[data-run]")];
  const smoothing = document.getElementById("smoothing");
  const charts = [...document.querySelectorAll(".chart")];
  let range = null;  // of the iterations that are shown, null for all
  let busy = false;

  const style = name =>
    getComputedStyle(root).getPropertyValue(name).trim();

  function smooth(values, weight) {
    if (!weight) return values;
    let sum = 0, norm = 0;
    return values.map(value => {
      sum = weight * sum + (1 - weight) * value;
      norm = weight * norm + (1 - weight);
      return sum / norm;
    });
  }

  function traces(chart) {
    const made = [];
    const weight = Number(smoothing.value);
    data.charts[chart.dataset.chart].series.forEach(line => {
      const run = data.runs[line.run];
      if (boxes.length && !boxes[line.run].checked) return;
      const several = data.runs.length > 1;
      const colour = several ? run.colour
        : data.colours[line.index % data.colours.length];
      const name = several ? run.name + ": " + line.name : line.name;
      made.push({
        x: line.x, y: smooth(line.y, weight), name: name, type: "scatter",
        mode: line.x.length < 12 ? "lines+markers" : "lines",
        line: {color: colour, width: 2,
               dash: several ? dashes[line.index % dashes.length] : "solid"},
        hovertemplate: "%{y:.4g}<extra>" + name.replace(/[<>&]/g, "") +
          "</extra>",
      });
    });
    return made;
  }

  function layout(chart) {
    const axis = {gridcolor: style("--line"), linecolor: style("--line"),
                  zerolinecolor: style("--line"), automargin: true};
    const one = data.charts[chart.dataset.chart];
    return {
      margin: {l: 46, r: 8, t: 8, b: 34}, hovermode: "x unified",
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: {color: style("--text"), size: 12,
             family: "system-ui, DejaVu Sans, sans-serif"},
      hoverlabel: {bgcolor: style("--panel"),
                   font: {color: style("--text")}},
      showlegend: false, dragmode: "zoom",
      xaxis: Object.assign({}, axis, range ? {range: range.slice()}
                                           : {autorange: true}),
      yaxis: Object.assign({}, axis, {type: one.log ? "log" : "linear"}),
    };
  }

  function draw() {
    charts.forEach(chart => {
      Plotly.react(chart, traces(chart), layout(chart),
                   {displayModeBar: false, responsive: true});
    });
  }

  function show(low, high) {
    const [first, last] = data.extent;
    range = null;
    if (low !== null) {
      const width = Math.min(high - low, last - first);
      low = Math.max(first, Math.min(low, last - width));
      if (width < last - first) range = [low, low + width];
    }
    busy = true;
    Promise.all(charts.map(chart => Plotly.relayout(
      chart, range ? {"xaxis.range": range.slice(), "yaxis.autorange": true}
                   : {"xaxis.autorange": true, "yaxis.autorange": true})))
      .then(() => { busy = false; });
    document.getElementById("shown").textContent = range
      ? "iterations " + Math.round(range[0]) + " to " + Math.round(range[1])
      : "all iterations";
  }

  function zoom(factor, shift) {
    const [first, last] = range || data.extent;
    const width = (last - first) * factor;
    const middle = (first + last) / 2 + shift * (last - first);
    show(middle - width / 2, middle + width / 2);
  }

  const actions = {
    "+": () => zoom(0.5, 0), "=": () => zoom(0.5, 0), "-": () => zoom(2, 0),
    "ArrowLeft": () => zoom(1, -0.25), "ArrowRight": () => zoom(1, 0.25),
    "0": () => show(null), "Escape": () => show(null),
  };

  draw();
  charts.forEach(chart => {
    chart.on("plotly_relayout", change => {
      if (busy) return;
      if ("xaxis.range[0]" in change) {
        show(change["xaxis.range[0]"], change["xaxis.range[1]"]);
      } else if (change["xaxis.autorange"]) {
        show(null);
      }
    });
    chart.addEventListener("keydown", event => {
      const action = actions[event.key];
      if (action && !event.ctrlKey && !event.metaKey && !event.altKey) {
        event.preventDefault();
        action();
      }
    });
  });
  boxes.forEach(box => box.addEventListener("change", draw));
  smoothing.addEventListener("input", draw);
  document.querySelectorAll("[data-key]").forEach(button =>
    button.addEventListener("click", () => actions[button.dataset.key]()));

  const themes = ["system", "light", "dark"];
  const theme = document.getElementById("theme");
  theme.addEventListener("click", () => {
    const now = root.dataset.theme || "system";
    const next = themes[(themes.indexOf(now) + 1) % themes.length];
    if (next === "system") delete root.dataset.theme;
    else root.dataset.theme = next;
    theme.textContent = "Theme: " + next;
    draw();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
