"use strict";
(() => {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const narrow = matchMedia("(max-width: 40rem)");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  const themed = ({ traces, layout }) => {
    const paint = (trace) => {
      const hue = trace.colour === "limit" ? colour("limit") : colour(`c${trace.colour % 8}`);
      return { ...trace, line: { ...trace.line, color: hue }, marker: { ...trace.marker, color: hue } };
    };
    const axis = { gridcolor: colour("rule"), linecolor: colour("rule"), zerolinecolor: colour("rule"), automargin: true };
    const plain = { color: colour("ink"), family: "system-ui, 'DejaVu Sans', sans-serif", size: 12 };
    return [
      traces.map(paint),
      {
        ...layout,
        xaxis: { ...axis, ...layout.xaxis },
        yaxis: { ...axis, ...layout.yaxis },
        paper_bgcolor: "rgba(0,0,0,0)",
        plot_bgcolor: "rgba(0,0,0,0)",
        font: plain,
        hoverlabel: { bgcolor: colour("ground"), bordercolor: colour("rule"), font: plain },
        legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom" },
        margin: { t: 10, r: 12, b: 40, l: 56 },
        modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("faint"), activecolor: colour("ink") },
        dragmode: narrow.matches ? false : "zoom",
      },
    ];
  };

  const draw = (figure) => {
    if (!charts[figure.id] || !figure.offsetParent) return;
    figure.classList.add("drawn");
    const options = { displaylogo: false, responsive: true, displayModeBar: narrow.matches ? false : "hover" };
    const remove = { modeBarButtonsToRemove: ["zoom2d", "pan2d", "lasso2d", "select2d", "autoScale2d"] };
    Plotly.react(figure.querySelector(".plot"), ...themed(charts[figure.id]), { ...options, ...remove })
      .then(() => {
        // The buttons have names; the pictures have none, and their numbers are in the table.
        for (const svg of document.querySelectorAll(".plot svg, #js-plotly-tester")) svg.setAttribute("aria-hidden", "true");
      })
      .catch((error) => {
        figure.classList.remove("drawn");  // the static picture is still there
        console.error(error);
      });
  };
  const drawAll = () => document.querySelectorAll("figure.chart").forEach(draw);

  const choose = (select) => {
    for (const figure of select.closest(".choice").querySelectorAll("figure"))
      figure.classList.toggle("chosen", figure.id === select.value);
    drawAll();
  };

  const open = () => {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target && target.tagName === "DETAILS") {
      target.open = true;
      target.scrollIntoView();
    }
  };

  const copy = async (button) => {
    const code = button.parentElement.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
  };

  document.documentElement.classList.add("scripted");
  for (const select of document.querySelectorAll(".chooser select")) {
    select.addEventListener("change", () => choose(select));
    choose(select);
  }
  for (const button of document.querySelectorAll("button.copy")) button.addEventListener("click", () => copy(button));
  for (const details of document.querySelectorAll("details")) details.addEventListener("toggle", drawAll);
  dark.addEventListener("change", drawAll);
  narrow.addEventListener("change", drawAll);
  addEventListener("hashchange", open);
  drawAll();
  open();
})();
