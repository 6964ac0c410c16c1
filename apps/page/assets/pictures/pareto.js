// pareto.js: what each method costs against the bits it takes, and which methods no other one beats.

kvcal.pictures.push({
  id: 'pareto',
  section: 'methods',
  order: 10,
  title: 'Quality against memory',
  about: 'Each mark is a method: to the left it takes less memory, further down it changes the model less. The stepped line ' +
    'joins the ' +
    'methods that no other one beats in both; what lies above it costs more than it must. Bars are the standard error over ' +
    'windows. ' +
    'Colour tells the family of methods, the mark\u2019s shape its bits.',
  wanted: (data) => kvcal.validation(data) !== null,
  missing: (data) => (costed(data.report, 'kld_mean').length > 0 ? null : 'No method but fp was measured. Name some with ' +
    '--methods.'),
  controls: () => [{name: 'measure', label: 'Cost', initial: 'kld_mean', options: [
    {value: 'kld_mean', text: 'KL mean (nats)'}, {value: 'ppl_delta', text: 'Change of perplexity'}]}],
  draw: (data, choice, theme) => drawPareto(data.report, choice.measure, theme),
});

const paretoErrors = {kld_mean: 'kld_stderr', ppl_delta: 'ppl_delta_stderr'};

function costed(report, measure) {
  return report.methods.filter((method) => method.name !== 'fp' && kvcal.isNumber(method[measure]) &&
    kvcal.isNumber(method.bits_per_value));
}

// Methods that none beats: fewer bits or less cost than every other one, from few bits to many.
kvcal.front = (methods, measure) => {
  const sorted = [...methods].sort((a, b) => a.bits_per_value - b.bits_per_value || a[measure] - b[measure]);
  let least = Infinity;
  return sorted.filter((method) => {
    if (method[measure] >= least) return false;
    least = method[measure];
    return true;
  });
};

function drawPareto(report, measure, theme) {
  const methods = costed(report, measure);
  const log = measure === 'kld_mean';
  // A logarithm has no place for 0 and less: such a method is in the table, and in words.
  const shown = log ? methods.filter((method) => method[measure] > 0) : methods;
  const front = kvcal.front(shown, measure);
  const fp = report.methods.find((method) => method.name === 'fp');
  return {
    traces: [...frontTrace(front, shown, measure, theme), ...shown.map((one) => pointTrace(one, measure, theme))],
    layout: paretoLayout(shown, measure, log, fp, front, theme),
    summary: paretoSummary(report, front, shown, methods.length - shown.length, measure),
    table: {
      head: ['Method', 'Bits/value', log ? 'KL mean (nats)' : 'Change of perplexity', 'Standard error', 'On the front'],
      rows: methods.map((one) => [one.name, one.bits_per_value, one[measure], one[paretoErrors[measure]], front.includes(one)]),
    },
  };
}

function frontTrace(front, shown, measure, theme) {
  if (front.length === 0) return [];
  const most = Math.max(...shown.map((one) => one.bits_per_value));
  return [{
    x: [...front.map((one) => one.bits_per_value), most], y: [...front, front[front.length - 1]].map((one) => one[measure]),
    type: 'scatter', mode: 'lines', line: {shape: 'hv', color: theme.muted, width: 1.5}, hoverinfo: 'skip', showlegend: false,
  }];
}

function pointTrace(method, measure, theme) {
  const style = theme.of(method.name);
  const error = method[paretoErrors[measure]];
  return {
    name: method.name, x: [method.bits_per_value], y: [method[measure]], type: 'scatter', mode: 'markers', showlegend: false,
    marker: {color: style.color, symbol: style.symbol, size: theme.small ? 9 : 11},
    error_y: kvcal.isNumber(error) ? {type: 'data', array: [error], color: style.color, thickness: 1.5, width: 4} : undefined,
    hovertemplate: `<b>${method.name}</b><br>%{x:.2f} bits a value<br>` +
      `${measure === 'kld_mean' ? 'KL ' : 'perplexity '}${kvcal.short(method[measure])}` +
      `${kvcal.isNumber(error) ? ' \u00b1 ' + kvcal.short(error, 2) : ''}<extra></extra>`,
  };
}

function paretoLayout(shown, measure, log, fp, front, theme) {
  const bits = shown.map((one) => one.bits_per_value);
  const room = 0.07 * (Math.max(...bits) - Math.min(...bits)) || 0.5;
  const wide = theme.small ? 2.6 * room : room;
  const layout = {
    height: theme.small ? 430 : 500,
    xaxis: {title: 'Bits a value, all counted', range: [Math.min(...bits) - wide, Math.max(...bits) + wide]},
    yaxis: {title: log ? 'KL(fp || method), mean, nats' : 'Change of perplexity', type: log ? 'log' : 'linear',
      exponentformat: 'power', dtick: log && spread(shown, measure) > 20 ? 1 : undefined},
    annotations: paretoLabels(shown, measure, log, front, theme),
    shapes: [],
  };
  if (log) layout.yaxis.minor = {ticks: 'outside', ticklen: 3, showgrid: false};
  const note = {xref: 'paper', yref: 'paper', x: 0, y: 1.01, xanchor: 'left', yanchor: 'bottom', showarrow: false};
  if (!fp) return layout;
  if (!log) {
    layout.shapes.push({type: 'line', xref: 'paper', x0: 0, x1: 1, y0: 0, y1: 0, line: {color: theme.text, width: 1.5,
      dash: 'longdash'}});
  }
  layout.annotations.push({...note, font: {color: theme.muted}, text: log
    ? `fp: ${kvcal.short(fp.bits_per_value)} bits, KL 0 by definition`
    : `Dashed: fp, ${kvcal.short(fp.bits_per_value)} bits`});
  return layout;
}

function spread(shown, measure) {
  const values = shown.map((one) => one[measure]);
  return Math.max(...values) / Math.min(...values);
}

// Names beside marks, set where no other name or mark stands: each takes the first free one of six places.
function paretoLabels(shown, measure, log, front, theme) {
  const width = theme.small ? 300 : 1000, height = theme.small ? 340 : 420, size = theme.small ? 11 : 12;
  const levelOf = (one) => (log ? Math.log10(one[measure]) : one[measure]);
  const xs = shown.map((one) => one.bits_per_value), ys = shown.map(levelOf);
  const heights = log ? ys : [...ys, 0];
  const place = (value, all, pixels) =>
    (pixels * (value - Math.min(...all))) / ((Math.max(...all) - Math.min(...all)) * 1.15 || 1);
  const marks = shown.map((one, i) => ({one, x: place(xs[i], xs, width), y: -place(ys[i], heights, height)}));
  const taken = marks.map(({x, y}) => ({left: x - 7, right: x + 7, top: y - 7, bottom: y + 7}));
  // The line of fp, where there is one.
  if (!log) taken.push({left: -Infinity, right: Infinity, top: -1, bottom: 1});
  const order = [...marks].sort((a, b) => front.includes(b.one) - front.includes(a.one));
  return order.map(({one, x, y}) => {
    const long = one.name.length * size * (front.includes(one) ? 0.68 : 0.58), half = size * 0.7;
    const right = [[10, 0], [8, -13], [8, 14]], left = [[-10 - long, 0], [-8 - long, 14], [-8 - long, -13]];
    const middle = [[-long / 2, 17], [-long / 2, -16], [-long / 2, 31], [-long / 2, -30]];
    // The front's line leaves a mark to the right and comes from above; the other marks lie above that line.
    const places = front.includes(one) ? [left[1], left[0], middle[0], right[2], ...middle, ...right] : [...right, ...middle,
      ...left];
    const boxes = places.map(([dx, dy]) => ({dx, dy, left: x + dx, right: x + dx + long, top: y + dy - half, bottom: y + dy +
      half}));
    const free = boxes.find((box) => !taken.some((other) => overlap(box, other))) || boxes[0];
    taken.push(free);
    return {x: one.bits_per_value, y: levelOf(one), text: front.includes(one) ? `<b>${one.name}</b>` : one.name,
      showarrow: false,
      xanchor: 'left', yanchor: 'middle', xshift: free.dx, yshift: -free.dy, font: {size, color: theme.text}};
  });
}

function overlap(a, b) {
  return a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
}

function paretoSummary(report, front, shown, left, measure) {
  const name = measure === 'kld_mean' ? 'mean KL' : 'change of perplexity';
  if (shown.length === 0) return `No method has a ${name} above 0.`;
  const list = front.map((one) =>
    `${one.name} (${kvcal.number(one.bits_per_value, 2)} bits, ${kvcal.short(one[measure])})`).join(', ');
  const best = kvcal.headline(report).method;
  const beaten = best && shown.includes(best) && !front.includes(best) ? ` ${best.name} is not among them.` : '';
  return `${front.length} of ${shown.length} methods are beaten by no other in both bits and ${name}: ${list}.${beaten}` +
    (left > 0 ? ` ${left} with a mean KL of 0 cannot be drawn.` : '');
}
