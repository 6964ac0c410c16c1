// decoding.js: the divergence at each step while the model writes, read from its own stored past.

kvcal.pictures.push({
  id: 'decoding',
  section: 'decoding',
  order: 10,
  title: 'Divergence while decoding',
  about: 'Full precision writes tokens after each window\u2019s beginning; every method is fed the same tokens one by one, ' +
    'its own cache ' +
    'behind it. A line that climbs says that damage builds up. Lines are running means; the band is one standard error over ' +
    'windows, smoothed alike. Choose a name in the legend to hide its line.',
  wanted: (data) => kvcal.validation(data) !== null,
  missing: (data) => (decodedMethods(data.report).length > 0 ? null
    : 'Not measured in this run. kvcal validate --generate N decodes N tokens after each window\u2019s beginning and ' +
      'measures it.'),
  controls: (data) => {
    const methods = decodedMethods(data.report);
    return [
      {name: 'measure', label: 'Measure', options: [{value: 'kld_mean', text: 'KL mean (nats)'}, {value: 'top1_agreement',
        text: 'Same top-1'}]},
      {name: 'method', label: 'Method', options: [{value: '', text: 'All'}, ...methods.map((one) => ({value: one.name,
        text: one.name}))]},
    ];
  },
  draw: drawDecoding,
});

function decodedMethods(report) {
  return report.methods.filter((method) => method.name !== 'fp' && method.generate && method.generate.by_position &&
    method.generate.by_position.kld_mean.length > 0);
}

// The mean over a window of positions around each, shorter at the ends; what is missing is left out.
kvcal.runningMean = (values, width) => values.map((_, at) => {
  const reach = Math.min(Math.floor(width / 2), at, values.length - 1 - at);
  const part = values.slice(at - reach, at + reach + 1).filter(kvcal.isNumber);
  return part.length > 0 ? part.reduce((sum, value) => sum + value, 0) / part.length : null;
});

function drawDecoding(data, choice, theme) {
  const methods = decodedMethods(data.report).filter((one) => choice.method === '' || one.name === choice.method);
  const steps = methods[0].generate.by_position.kld_mean.length;
  const width = steps < 8 ? 1 : 2 * Math.round(steps / 16) + 1;
  const kl = choice.measure === 'kld_mean';
  const traces = methods.flatMap((method) => decodingTraces(method, choice.measure, width, methods.length, theme));
  return {
    traces,
    layout: {
      height: theme.small ? 470 : 480,
      xaxis: {title: 'Token after the prompt'},
      yaxis: {title: kl ? 'KL(fp || method), nats' : 'Same top-1, %', type: kl && methods.length > 1 ? 'log' : 'linear',
        exponentformat: 'power'},
    },
    summary: decodingSummary(methods, steps, width),
    table: {
      head: ['Token', ...methods.map((method) => method.name)],
      rows: Array.from({length: steps}, (_, at) => [at + 1,
        ...methods.map((one) => one.generate.by_position[choice.measure][at])]),
    },
  };
}

function decodingTraces(method, measure, width, count, theme) {
  const style = theme.of(method.name);
  const by = method.generate.by_position;
  const scale = measure === 'kld_mean' ? 1 : 100;
  const mean = kvcal.runningMean(by[measure], width).map((value) => (value === null ? null : scale * value));
  const x = mean.map((_, at) => at + 1);
  const line = {
    name: method.name, legendgroup: method.name, x, y: mean, type: 'scatter', mode: 'lines+markers',
    line: {color: style.color, dash: style.dash, width: 2},
    marker: {color: style.color, symbol: style.symbol, size: 7, maxdisplayed: 9},
    hovertemplate: `${method.name}, token %{x}<br>%{y:.3g}<extra></extra>`,
  };
  const errors = measure === 'kld_mean' ? kvcal.runningMean(by.kld_stderr || [], width) : [];
  if (errors.length !== mean.length || !errors.every(kvcal.isNumber)) return [line];
  const upper = mean.map((value, at) => value + errors[at]);
  const lower = mean.map((value, at) => (count > 1 ? Math.max(value - errors[at], value / 10) : Math.max(0,
    value - errors[at])));
  const band = {
    legendgroup: method.name, x: [...x, ...[...x].reverse()], y: [...upper, ...lower.reverse()], type: 'scatter', mode: 'lines',
    fill: 'toself', fillcolor: translucent(style.color, count > 1 ? 0.12 : 0.22), line: {width: 0}, hoverinfo: 'skip',
      showlegend: false,
  };
  return [band, line];
}

function translucent(colour, alpha) {
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  return `rgba(${red},${green},${blue},${alpha})`;
}

function decodingSummary(methods, steps, width) {
  const part = Math.max(1, Math.floor(steps / 4));
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const grown = methods.map((method) => {
    const values = method.generate.by_position.kld_mean;
    const first = mean(values.slice(0, part)), last = mean(values.slice(-part));
    return {name: method.name, first, last, ratio: last / first};
  }).filter((one) => kvcal.isNumber(one.ratio)).sort((a, b) => b.ratio - a.ratio);
  const smooth = width > 1 ? ` Means run over ${width} tokens.` : '';
  if (grown.length === 0) return `${steps} tokens decoded.${smooth}`;
  const worst = grown[0];
  const whose = grown.length > 1 ? `Of these methods ${worst.name} grows most: its` : `${worst.name}\u2019s`;
  return `${steps} tokens decoded. ${whose} mean KL goes from ${kvcal.short(worst.first)} over the first ${part} tokens ` +
    `to ${kvcal.short(worst.last)} over the last ${part}.${smooth}`;
}
