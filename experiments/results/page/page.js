"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const axes = {
    compression: { title: "Compression ratio (prunable / kept weights)", short: "Compression ratio", at: p => 1 / p.density, log: true },
    sparsity: { title: "Sparsity of the prunable weights (%)", short: "Sparsity (%)", at: p => 100 * (1 - p.density) },
    macs: { title: "Remaining multiply-accumulates (%)", short: "Remaining MACs (%)", at: p => p.macs === null ? null : 100 * p.macs },
    latency: { title: "Milliseconds a forward pass of one batch", short: "Milliseconds a batch", at: p => p.latency },
    cost: { title: "Epochs of training in all", short: "Epochs of training", at: p => p.cost },
  };
  const chosen = { scorer: null, granularity: null, seed: null };
  const font = { family: "system-ui, -apple-system, 'Segoe UI', 'Liberation Sans', 'DejaVu Sans', sans-serif", size: 13, color: "#1b1f24" };
  const small = () => window.innerWidth < 640;
  const element = (name, properties = {}, children = []) => {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  };
  const shown = value => value.toFixed(data.digits);
  const format = value => String(Number(value.toPrecision(4)));
  // Plotly reads a few tags in labels: text from runs must stay text.
  const escaped = text => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

  function meanInterval(values) {
    const n = values.length;
    const mean = values.reduce((sum, v) => sum + v, 0) / n;
    if (n < 2) return { mean, half: null, n };
    const variance = values.reduce((sum, v) => sum + (v - mean) ** 2, 0) / (n - 1);
    return { mean, half: data.quantiles[n] * Math.sqrt(variance / n), n };
  }

  function filters() {
    const place = document.getElementById("filters");
    for (const key of Object.keys(chosen)) {
      const values = [...new Set(data.points.map(p => p[key]))].sort((a, b) => a < b ? -1 : a > b ? 1 : 0);
      chosen[key] = new Set(values);
      if (values.length < 2) continue;
      const boxes = values.map(value => {
        const box = element("input", { type: "checkbox", checked: true, value: String(value) });
        box.dataset.filter = key;
        box.addEventListener("change", () => {
          box.checked ? chosen[key].add(value) : chosen[key].delete(value);
          draw();
        });
        return element("label", {}, [box, String(value)]);
      });
      place.append(element("fieldset", {}, [element("legend", { textContent: key }), ...boxes]));
    }
  }

  function means(points, axis) {
    const groups = new Map();
    for (const p of points) {
      if (!groups.has(p.requested)) groups.set(p.requested, []);
      groups.get(p.requested).push(p);
    }
    const found = [];
    for (const [requested, of] of groups) {
      const at = of.map(axes[axis].at).filter(x => x !== null && Number.isFinite(x));
      if (!at.length) continue;
      const x = at.reduce((sum, one) => sum + one, 0) / at.length;
      // the mean of densities, not of ratios, as in the tables
      const density = of.reduce((sum, p) => sum + p.density, 0) / of.length;
      found.push({ requested, density, x: axis === "compression" ? 1 / density : x, ...meanInterval(of.map(p => data.scale * p.value)) });
    }
    return found.sort((a, b) => a.x - b.x);
  }

  function draw() {
    const axis = document.getElementById("axis").value;
    const kept = data.points.filter(p => Object.keys(chosen).every(key => chosen[key].has(p[key])));
    const traces = [], seen = [];
    for (const method of data.methods) {
      const points = kept.filter(p => p.method === method.name);
      const line = means(points, axis);
      if (!line.length) continue;
      seen.push(...line.map(p => p.mean));
      const x = line.map(p => p.x), banded = line.filter(p => p.half !== null);
      traces.push({
        x: [...banded.map(p => p.x), ...banded.map(p => p.x).reverse()],
        y: [...banded.map(p => p.mean + p.half), ...banded.map(p => data.log ? Math.max(p.mean - p.half, p.mean / 1000) : p.mean - p.half).reverse()],  // no logarithm below 0
        fill: "toself", fillcolor: method.colour + "22", line: { width: 0 }, mode: "lines", hoverinfo: "skip",
        showlegend: false, legendgroup: method.name, name: escaped(method.name) + " interval",
      });
      traces.push({
        x, y: line.map(p => p.mean), mode: "lines+markers", name: escaped(method.name), legendgroup: method.name,
        line: { color: method.colour, width: 2 }, marker: { symbol: method.symbol, size: 8 },
        customdata: line.map(p => [p.half === null ? "one seed" : "± " + shown(p.half), p.n, format(100 * p.density), format(1 / p.density)]),
        hovertemplate: `%{y:.${data.digits}f} %{customdata[0]}, n = %{customdata[1]}<br>%{customdata[2]} % kept (%{customdata[3]}×)`,
      });
      if (document.getElementById("seeds").checked) {
        const there = points.filter(p => Number.isFinite(axes[axis].at(p)) && axes[axis].at(p) !== null);
        traces.push({
          x: there.map(axes[axis].at), y: there.map(p => data.scale * p.value), mode: "markers", showlegend: false,
          legendgroup: method.name, name: escaped(method.name),
          marker: { symbol: method.symbol + "-open", size: 6, color: method.colour },
          customdata: there.map(p => [p.seed, escaped(p.run)]),
          hovertemplate: `%{y:.${data.digits}f}, seed %{customdata[0]}<br>%{customdata[1]}`,
        });
      }
    }
    const nothing = !traces.length;
    document.getElementById("nothing").hidden = !nothing;
    document.getElementById("plot").hidden = nothing;
    if (nothing) return;
    const setups = new Map();
    for (const d of data.dense.filter(d => chosen.seed.has(d.seed))) setups.set(d.setup, [...(setups.get(d.setup) ?? []), data.scale * d.value]);
    const base = [...setups.values()].map(values => meanInterval(values).mean);
    const low = Math.min(...seen, ...base), high = Math.max(...seen, ...base);
    const shapes = [...setups.keys()].map((setup, place) => ({
      type: "line", xref: "paper", x0: 0, x1: 1, y0: base[place], y1: base[place], line: { color: "#1b1f24", width: 1.5, dash: "dash" },
      label: { text: escaped(setup), textposition: "end", font: { size: 12 } },
    }));
    // Near the dense network: from there to the median, on the side where networks are worse.
    const median = [...seen].sort((a, b) => a - b)[Math.floor(seen.length / 2)];
    const near = document.getElementById("near").checked;
    const ends = [near && !data.lower ? Math.min(median, ...base) : low, near && data.lower ? Math.max(median, ...base) : high];
    const [bottom, top] = data.log ? ends.map(Math.log10) : ends;
    const margin = 0.06 * (top - bottom) || (data.log ? 0.05 : 1);
    Plotly.react("plot", traces, {
      font, shapes, paper_bgcolor: "#ffffff", plot_bgcolor: "#ffffff", hovermode: "closest", autosize: true,
      margin: { l: 62, r: 16, t: 16, b: 56 },
      xaxis: { title: { text: small() ? axes[axis].short : axes[axis].title, standoff: 12 }, type: axes[axis].log ? "log" : "linear", gridcolor: "#e6e9ed", zeroline: false,
        ...(axes[axis].log ? { tickmode: "array", ...ticks(traces) } : {}), automargin: true },
      yaxis: { title: { text: escaped(data.label), standoff: 8 }, gridcolor: "#e6e9ed", zeroline: false, range: [bottom - margin, top + margin], automargin: true,
        ...(data.log ? { type: "log", ...levels(bottom - margin, top + margin) } : {}) },
      legend: { orientation: "h", x: 0, y: -0.22, yanchor: "top" },
    }, { responsive: true, displaylogo: false, displayModeBar: !small() });
  }

  // A tick at every operating point, as far as they have room.
  function ticks(traces) {
    const points = [...new Set(traces.filter(t => t.mode === "lines+markers").flatMap(t => t.x))].filter(Number.isFinite).sort((a, b) => a - b);
    const room = Math.log(points[points.length - 1] / points[0]) / (small() ? 7 : 16) || 1;
    const kept = [];
    for (const point of points.reverse()) if (!kept.length || Math.log(kept[kept.length - 1] / point) >= room) kept.push(point);
    return { tickvals: kept, ticktext: kept.map(x => Number(x.toPrecision(3)) >= 1000 ? Math.round(x).toLocaleString("en") + "×" : Number(x.toPrecision(3)) + "×") };
  }

  // Round numbers on a logarithmic axis: 1, 2 and 5 of every decade, or of every so many where there are many.
  function levels(bottom, top) {
    const found = [], steps = top - bottom < 3 ? [1, 2, 5] : [1], apart = Math.max(1, Math.ceil((top - bottom) / 8));
    for (let power = Math.floor(bottom / apart) * apart; power <= top; power += apart)
      for (const step of steps) if (Math.log10(step) + power >= bottom && Math.log10(step) + power <= top) found.push(step * 10 ** power);
    if (found.length < 2) return { nticks: 6 };  // less than a decade
    return { tickmode: "array", tickvals: found, ticktext: found.map(y => y >= 1e6 || y < 1e-3 ? y.toExponential(0) : Number(y.toPrecision(3)).toLocaleString("en", { maximumFractionDigits: 6 })) };
  }

  function heat() {
    const method = document.getElementById("method").value;
    const lines = data.layers.filter(line => line.method === method);
    const names = [...new Set(lines.map(line => line.layer))];
    const densities = [...new Set(lines.map(line => line.requested_density))].sort((a, b) => b - a);
    const found = new Map(lines.map(line => [line.layer + "\n" + line.requested_density, line]));
    const cell = (name, density) => found.get(name + "\n" + density);
    const values = names.map(name => densities.map(density => cell(name, density) ? 100 * cell(name, density).density : null));
    const least = Math.min(...data.layers.filter(line => line.density > 0).map(line => 100 * line.density));
    const low = Math.floor(Math.log10(least)), decades = [];
    for (let power = low; power <= 2; power++) decades.push(power);
    Plotly.react("heat", [{
      type: "heatmap", x: densities.map(d => format(100 * d)), y: names.map(name => escaped(name.replace(/\.weight$/, ""))),
      z: values.map(row => row.map(v => v === null || v === 0 ? null : Math.log10(v))), zmin: Math.log10(least), zmax: 2,
      colorscale: "Cividis", xgap: 1, ygap: 1, hoverongaps: true,
      text: values.map(row => row.map(v => v === null ? "" : v < 10 ? v.toPrecision(2) : v.toFixed(0))), texttemplate: densities.length <= (small() ? 7 : 14) ? "%{text}" : "",
      customdata: names.map(name => densities.map(density => cell(name, density) ? [Math.round(cell(name, density).kept), cell(name, density).total] : ["", ""])),
      hovertemplate: "%{y} at %{x} %: %{text} % kept<br>%{customdata[0]} of %{customdata[1]} weights<extra></extra>",
      colorbar: { title: { text: "kept (%)" }, tickvals: decades, ticktext: decades.map(p => String(10 ** p)), thickness: 12, outlinewidth: 0 },
    }], {
      font, autosize: true, height: 130 + 26 * Math.max(3, names.length), margin: { l: 8, r: 8, t: 8, b: 48 }, paper_bgcolor: "#ffffff", plot_bgcolor: "#ffffff",
      xaxis: { title: { text: "Density asked for (%)", standoff: 10 }, type: "category", automargin: true },
      yaxis: { autorange: "reversed", automargin: true, type: "category" },
    }, { responsive: true, displaylogo: false, displayModeBar: false });
  }

  const options = (id, values, texts = values) => {
    document.getElementById(id).append(...values.map((value, place) => element("option", { value, textContent: texts[place] })));
  };
  options("axis", data.axes, data.axes.map(axis => axes[axis].title));
  for (const id of ["axis", "near", "seeds"]) document.getElementById(id).addEventListener("change", draw);
  filters();
  draw();
  const measured = data.methods.map(m => m.name).filter(name => data.layers.some(line => line.method === name));
  if (measured.length) {
    options("method", measured);
    document.getElementById("method").addEventListener("change", heat);
    heat();
  } else document.getElementById("layers").hidden = true;
  document.body.dataset.ready = "yes";
})();
