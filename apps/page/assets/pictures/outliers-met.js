// outliers-met.js: outliers found in the validation text beside those foreseen, and those that found no slot.

const hasOutliers = (tensor) => tensor.outliers_nominal > 0;

kvcal.pictures.push({
  id: 'outliers-met',
  section: 'layers',
  order: 30,
  title: 'Outliers met and foreseen',
  about: 'Thresholds of keys are the calibration\u2019s, so text of another kind has more outliers than were foreseen (the ' +
    'dashed line). ' +
    'Past twice as many, calibrate on text that is more like what the model serves. Dropped are outliers that found no slot ' +
    'in a ' +
    'page and fell to the nearest code, as a share of the outliers.',
  wanted: (data) => kvcal.validation(data) !== null,
  missing: (data) => (kvcal.layerMethods(data, hasOutliers).length > 0 ? null
    : 'No method with outliers kept apart was measured. Methods such as nuq3-1% have them.'),
  controls: (data) => {
    const methods = kvcal.layerMethods(data, hasOutliers);
    const options = [{value: 'met', text: 'Met'}];
    if (kvcal.layerMethods(data, (t) => hasOutliers(t) && t.outliers_dropped > 0).length > 0) options.push({value: 'dropped',
      text: 'Dropped'});
    return [kvcal.methodControl(data, methods), {name: 'measure', label: 'Outliers', initial: 'met', options}];
  },
  draw: drawOutliers,
});

function drawOutliers(data, choice, theme) {
  const method = data.report.methods.find((one) => one.name === choice.method);
  const names = kvcal.tensorNames(method);
  const dropped = choice.measure === 'dropped';
  const read = (tensor) => (dropped ? tensor.outliers_dropped : tensor.outliers_observed);
  const nominal = Math.max(...tensorsOf(method).map((one) => one.data.outliers_nominal || 0));
  const traces = kvcal.layerTraces(method, theme, (tensor) => (kvcal.isNumber(read(tensor)) ? 100 * read(tensor) : null));
  return {
    traces,
    layout: {
      xaxis: kvcal.layerAxis(method, theme),
      yaxis: {title: dropped ? 'Dropped, % of outliers' : 'Outliers, % of numbers', rangemode: 'tozero'},
      shapes: dropped ? [] : [{type: 'line', xref: 'paper', x0: 0, x1: 1, y0: 100 * nominal, y1: 100 * nominal,
        line: {color: theme.text, width: 1.5, dash: 'longdash'}}],
      annotations: dropped ? [] : [{xref: 'paper', x: 0, y: 100 * nominal, xanchor: 'left', yanchor: 'top', showarrow: false,
        text: 'foreseen', font: {color: theme.muted}}],
    },
    summary: outliersSummary(method, dropped),
    table: {
      head: ['Layer', ...names.flatMap((name) => [`${kvcal.tensorTitle(name)}, met`, 'foreseen', 'dropped'])],
      rows: method.layers.map((layer) => [layer.layer, ...names.flatMap((name) => {
        const tensor = layer[name] || {};
        return [tensor.outliers_observed, tensor.outliers_nominal, tensor.outliers_dropped];
      })]),
    },
  };
}

function outliersSummary(method, dropped) {
  if (dropped) {
    const worst = kvcal.largestTensor(method, (tensor) => tensor.outliers_dropped);
    return worst.value > 0 ? `${method.name}: ${worst.tensor}s of layer ${worst.layer} lost ` +
      `the largest share of their outliers, ` +
      `${kvcal.percent(worst.value)}.` : `${method.name} dropped no outlier.`;
  }
  const ratio = (tensor) => (tensor.outliers_nominal > 0 ? tensor.outliers_observed / tensor.outliers_nominal : null);
  const worst = kvcal.largestTensor(method, ratio);
  const many = tensorsOf(method).filter((one) => ratio(one.data) > 2).length;
  return `${method.name}: ${worst.tensor}s of layer ${worst.layer} met most, ` +
    `${kvcal.percent(worst.data.outliers_observed, 2)} of numbers, ` +
    `${kvcal.short(worst.value, 2)} times what was foreseen. ` +
    (many === 0 ? 'No tensor met more than twice as many as foreseen.'
      : `${many} tensor${many === 1 ? '' : 's'} met more than twice as many as foreseen.`);
}
