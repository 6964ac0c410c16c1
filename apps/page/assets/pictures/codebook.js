// codebook.js: the centroids of a datatype over the weight that they were fitted to.
kvcal.datatypePicture = {
  BULK: 0.8,  // "most" of the weight

  // Layers with a datatype, as {layer, tensors: [names]}.
  layers(data) {
    const withTypes = (layer) => kvcal.channels.tensors(layer)
      .filter((name) => layer[name].outliers.some((set) => (set.datatypes || []).some((type) => type.centroids)));
    return kvcal.channels.layers(data).map((layer) => ({layer, tensors: withTypes(layer)})).filter((one) => one.tensors.length);
  },

  controls(data) {
    const layers = kvcal.datatypePicture.layers(data);
    const tensors = new Set(layers.flatMap((one) => one.tensors));
    const sets = layers.flatMap((one) => one.tensors.flatMap((name) => one.layer[name].outliers));
    const fractions = [...new Set(sets.map((set) => set.fraction))].sort((a, b) => a - b);
    const bits = [...new Set(sets.flatMap((set) => (set.datatypes || []).map((type) => type.bits)))].sort((a, b) => a - b);
    const options = (values, text) => values.map((value) => ({value: String(value), text: text(value)}));
    return [
      kvcal.channels.layerControl(layers.map((one) => one.layer)),
      {name: 'tensor', label: 'Tensor', options: options([...tensors], kvcal.channels.title), initial: [...tensors][0]},
      {name: 'bits', label: 'Bits', options: options(bits, String), initial: String(bits.includes(3) ? 3 : bits[0])},
      {
        name: 'fraction', label: 'Outliers left out', options: options(fractions, kvcal.channels.fractionText),
        initial: String(fractions.includes(0.01) ? 0.01 : fractions[0]),
      },
      {name: 'qnorm', label: 'Q-Norm', options: [{value: 'off', text: 'off'}, {value: 'on', text: 'on'}], initial: 'off'},
    ];
  },

  // What is chosen, or null where this layer has no such tensor, fraction or bits.
  find(data, choice) {
    const layer = kvcal.channels.layer(kvcal.datatypePicture.layers(data).map((one) => one.layer), choice.layer);
    const tensor = layer && layer[choice.tensor];
    const set = tensor && kvcal.channels.set(tensor.outliers, choice.fraction);
    const type = set && (set.datatypes || []).find((one) => one.bits === Number(choice.bits));
    if (!type || !type.centroids) return null;
    // In the units of the centroids: of the ranges fitted to this datatype, where there are any.
    const shares = type.histogram || set.histogram;
    const histogram = shares ? Array.from(kvcal.array(shares)) : null;
    const centroids = Array.from(kvcal.array(type.centroids));
    return {
      layer, set, type, centroids, borders: centroids.slice(1).map((value, i) => (value + centroids[i]) / 2),
      qnorm: centroids.map((value) => value * type.qnorm_scale + type.qnorm_offset),
      uniform: centroids.map((_, i) => -1 + 2 * i / (centroids.length - 1)),
      histogram: histogram && histogram.some((share) => share > 0) ? histogram : null,
    };
  },

  middle: (bin, bins) => -1 + (2 * bin + 1) / bins,

  histogram({histogram}, theme) {
    const bins = histogram.length;
    const x = histogram.map((_, bin) => kvcal.datatypePicture.middle(bin, bins));
    return {
      type: 'bar', name: 'share of the weight', x, y: histogram, width: 2 / bins, xaxis: 'x', yaxis: 'y',
      marker: {color: theme.muted, opacity: 0.55, line: {width: 0}},
      hovertemplate: 'around %{x:.3f}<br>%{y:.2%} of the weight<extra></extra>',
    };
  },

  // Vertical lines from the bottom to `top`, as one trace.
  stems(values, top, name, line) {
    return {
      type: 'scatter', mode: 'lines', name, xaxis: 'x', yaxis: 'y', line, hoverinfo: 'skip',
      x: values.flatMap((value) => [value, value, null]), y: values.flatMap(() => [0, top, null]),
    };
  },

  // A row of marks below the histogram.
  marks(values, row, colour, symbol, showlegend) {
    return {
      type: 'scatter', mode: 'markers', name: row, x: values, y: values.map(() => row), xaxis: 'x', yaxis: 'y2', showlegend,
      marker: {symbol, size: symbol.startsWith('line') ? 14 : 9, color: colour, line: {color: colour, width: 2}},
      text: values.map((_, i) => `code ${i}`), hovertemplate: `${row}, %{text}: %{x:.4f}<extra></extra>`,
    };
  },

  traces(found, choice, theme) {
    const own = kvcal.datatypePicture;
    const [centroids, qnorm] = [theme.palette[0], theme.palette[1]];
    const top = found.histogram ? 1.05 * Math.max(...found.histogram) : 1;
    const traces = found.histogram ? [own.histogram(found, theme)] : [];
    traces.push(own.stems(found.borders, top, 'cell border', {color: theme.text, width: 1, dash: 'dot'}));
    traces.push(own.stems(found.centroids, top, 'centroid', {color: centroids, width: 2}));
    if (choice.qnorm === 'on') {
      traces.push(own.stems(found.qnorm, top, 'with Q-Norm', {color: qnorm, width: 2, dash: 'dash'}));
    }
    traces.push(own.marks(found.uniform, 'uniform', theme.muted, 'line-ns-open', false));
    if (choice.qnorm === 'on') traces.push(own.marks(found.qnorm, 'Q-Norm', qnorm, 'diamond', false));
    traces.push(own.marks(found.centroids, 'centroids', centroids, 'circle', false));
    return traces;
  },

  layout(found, choice, theme) {
    const reach = choice.qnorm === 'on' ? Math.max(1, ...found.qnorm.map(Math.abs)) : 1;
    const rows = choice.qnorm === 'on' ? ['uniform', 'Q-Norm', 'centroids'] : ['uniform', 'centroids'];
    const strip = 0.08 * rows.length;
    return {
      height: theme.small ? 420 : 440, bargap: 0, barmode: 'overlay', hovermode: 'closest', showlegend: true,
      legend: {orientation: 'h', x: 0, y: theme.small ? -0.2 : -0.16, yanchor: 'top'},
      margin: {l: theme.small ? 64 : 76, r: 12, t: 16, b: theme.small ? 110 : 90},
      xaxis: {title: {text: 'normalised value'}, range: [-1.03 * reach, 1.03 * reach], zeroline: false, anchor: 'y2'},
      yaxis: {
        title: {text: found.histogram ? 'share of the weight' : ''}, domain: [strip + 0.04, 1], rangemode: 'tozero',
        tickformat: found.histogram ? '.1~%' : '', visible: Boolean(found.histogram), zeroline: false,
      },
      yaxis2: {
        domain: [0, strip], type: 'category', categoryorder: 'array', categoryarray: rows, showgrid: false, zeroline: false,
      },
    };
  },

  // The shortest run of bins that holds BULK of the weight: {from, to, share}.
  bulk(histogram) {
    const total = histogram.reduce((sum, share) => sum + share, 0);
    const bins = histogram.length;
    let best = null;
    for (let first = 0, last = 0, sum = 0; first < bins; sum -= histogram[first++]) {
      while (last < bins && sum < kvcal.datatypePicture.BULK * total) sum += histogram[last++];
      if (sum < kvcal.datatypePicture.BULK * total) break;
      if (best && last - first >= best.bins) continue;
      best = {bins: last - first, from: -1 + 2 * first / bins, to: -1 + 2 * last / bins, share: sum / total};
    }
    return best;
  },

  // The mean squared error that levels leave, from the histogram: weight spread evenly within each bin.
  error(histogram, levels) {
    const bins = histogram.length;
    let sum = 0;
    histogram.forEach((share, bin) => {
      const x = kvcal.datatypePicture.middle(bin, bins);
      const nearest = levels.reduce((least, level) => Math.min(least, Math.abs(level - x)), Infinity);
      sum += share * (nearest * nearest + 1 / (3 * bins * bins));
    });
    return sum;
  },

  weightText(found) {
    if (!found.histogram) return `How the weight lies is not in this file. ${kvcal.channels.OLD_FILE}`;
    const bulk = kvcal.datatypePicture.bulk(found.histogram);
    const inside = (levels) => levels.filter((level) => level >= bulk.from && level <= bulk.to).length;
    const share = kvcal.percent(bulk.share, 0);
    const range = kvcal.percent((bulk.to - bulk.from) / 2, 0);
    return `${share} of the weight lies between ${kvcal.short(bulk.from)} and ${kvcal.short(bulk.to)}, ${range} of the range: `
      + `${inside(found.centroids)} of ${found.centroids.length} centroids are there, `
      + `${inside(found.uniform)} of the uniform levels.`;
  },

  gapText(found) {
    const gaps = found.borders.map((_, i) => found.centroids[i + 1] - found.centroids[i]);
    const [least, greatest] = [Math.min(...gaps), Math.max(...gaps)];
    const uniform = kvcal.short(2 / gaps.length);
    const start = `Neighbouring centroids lie ${kvcal.short(least)} to ${kvcal.short(greatest)} apart, `
      + `uniform levels ${uniform}`;
    if (!found.histogram) return `${start}.`;
    const own = kvcal.datatypePicture.error(found.histogram, found.centroids);
    const even = kvcal.datatypePicture.error(found.histogram, found.uniform);
    return own > 0 ? `${start}, which would leave about ${kvcal.short(even / own, 2)} times the weighted error.` : `${start}.`;
  },

  boundText({type}) {
    const {objective, lower_bound: bound} = type;
    if (!kvcal.isNumber(objective) || !kvcal.isNumber(bound)) return '';
    const start = `The objective is ${kvcal.short(objective, 4)}`;
    if (!(bound > 0)) return `${start}.`;
    const excess = Math.max(0, objective / bound - 1);
    const near = excess < 1e-9 ? 'equal to the proven lower bound' : `${kvcal.percent(excess, 3)} above the proven lower bound`;
    return `${start}, ${near}.`;
  },

  summary(found, choice) {
    const {type, set, layer} = found;
    const share = set.fraction === 0 ? 'no' : kvcal.channels.fractionText(set.fraction);
    const outliers = `${share} outliers left out`;
    const start = `Layer ${layer.layer}, ${kvcal.channels.title(choice.tensor)}, ${type.bits} bits, ${outliers}.`;
    const own = kvcal.datatypePicture;
    const parts = [start, own.weightText(found), own.gapText(found), own.boundText(found)];
    if (choice.qnorm === 'on') {
      const sign = type.qnorm_offset < 0 ? 'minus' : 'plus';
      parts.push(`Q-Norm reads a centroid as ${kvcal.short(type.qnorm_scale, 4)} times itself ${sign} `
        + `${kvcal.short(Math.abs(type.qnorm_offset), 3)}.`);
    }
    if (type.weights === 'uniform') parts.push('All sensitivities were zero here, so every element weighs the same.');
    if (type.weights === 'none') parts.push('Sensitivities were not taken, so the weight is that of the ranges alone, if any.');
    return parts.filter(Boolean).join(' ');
  },

  table({centroids, qnorm, uniform, histogram}) {
    const borders = [-Infinity, ...centroids.slice(1).map((value, i) => (value + centroids[i]) / 2), Infinity];
    const weight = (i) => histogram && histogram.reduce((sum, share, bin) => {
      const x = kvcal.datatypePicture.middle(bin, histogram.length);
      return sum + (x > borders[i] && x <= borders[i + 1] ? share : 0);
    }, 0);
    return {
      head: ['code', 'centroid', 'with Q-Norm', 'uniform level', 'upper cell border', 'share of the weight (by bins)'],
      rows: centroids.map((value, i) => {
        const border = i + 1 < centroids.length ? borders[i + 1] : null;
        return [i, value, qnorm[i], uniform[i], border, weight(i)];
      }),
    };
  },

  draw(data, choice, theme) {
    const found = kvcal.datatypePicture.find(data, choice);
    if (!found) {
      return {
        traces: [], layout: {height: 120, xaxis: {visible: false}, yaxis: {visible: false}},
        summary: `Layer ${choice.layer} has no ${choice.bits}-bit datatype of ${kvcal.channels.title(choice.tensor)} `
          + 'with this outlier fraction.',
        table: {head: ['code', 'centroid'], rows: []},
      };
    }
    const own = kvcal.datatypePicture;
    return {
      traces: own.traces(found, choice, theme), layout: own.layout(found, choice, theme),
      summary: own.summary(found, choice), table: own.table(found),
    };
  },
};

kvcal.pictures.push({
  id: 'codebook', section: 'codebook', title: 'The datatype of a layer',
  about: 'The 2^bits centroids to which a layer\u2019s normalised values are rounded, over a histogram of the weight '
    + 'that they were fitted to: each element counts by its sensitivity (Fisher information) and the '
    + 'square of the range it was normalised by. '
    + 'A value takes the centroid in whose cell it lies; dotted lines are the cells\u2019 borders, '
    + 'midway between centroids. Marks below compare with uniform levels of the same bits. '
    + 'Where weight is dense, centroids should be, too. Q-Norm shifts and stretches what is read back.',
  missing(data) {
    if (!data.codebook) return kvcal.channels.NO_CODEBOOK;
    return kvcal.datatypePicture.layers(data).length ? null : 'The codebook holds no datatypes, so there is nothing to draw.';
  },
  controls: (data) => kvcal.datatypePicture.controls(data),
  draw: (data, choice, theme) => kvcal.datatypePicture.draw(data, choice, theme),
});
