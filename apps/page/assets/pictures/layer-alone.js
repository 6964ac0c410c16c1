// layer-alone.js: what storing one tensor alone costs, where it was measured.

const hasAlone = (tensor) => kvcal.isNumber(tensor.kld_mean);

kvcal.pictures.push({
  id: 'layer-alone',
  section: 'layers',
  order: 10,
  title: 'What each tensor costs alone',
  about: 'The mean KL divergence when this tensor of this layer alone is stored and everything else stays exact. The highest ' +
    'bars are ' +
    'where more bits would help most. Lines on the bars are the standard error over windows.',
  wanted: (data) => kvcal.validation(data) !== null,
  missing: (data) => (kvcal.layerMethods(data, hasAlone).length > 0 ? null
    : 'Not measured in this run. kvcal validate --per-layer-kl measures it, at about half a pass over the model for each ' +
      'tensor.'),
  controls: (data) => [kvcal.methodControl(data, kvcal.layerMethods(data, hasAlone))],
  draw: drawLayerAlone,
});

function drawLayerAlone(data, choice, theme) {
  const method = data.report.methods.find((one) => one.name === choice.method);
  const names = kvcal.tensorNames(method);
  const worst = kvcal.largestTensor(method, (tensor) => tensor.kld_mean);
  const sum = tensorsOf(method).reduce((total, one) => total + (one.data.kld_mean || 0), 0);
  const traces = kvcal.layerTraces(method, theme, (tensor) => tensor.kld_mean, (tensor) => tensor.kld_stderr)
    .map((trace, at) => ({
      ...trace, type: 'bar', mode: undefined, line: undefined, error_y: trace.error_y && {...trace.error_y, color: theme.text},
      marker: {color: trace.marker.color, pattern: at === 0 ? undefined
        : {shape: '/', fillmode: 'overlay', fgcolor: theme.background, size: 7, solidity: 0.25}},
    }));
  const whole = kvcal.isNumber(method.kld_mean) && method.kld_mean > 0
    ? `, ${kvcal.percent(sum / method.kld_mean, 0)} of the ${kvcal.short(method.kld_mean)} that all cost at once` : '';
  return {
    traces,
    layout: {barmode: 'group', bargap: 0.25, xaxis: kvcal.layerAxis(method, theme), yaxis: {title: 'KL mean alone, nats',
      rangemode: 'tozero'}},
    summary: `${method.name}: ${worst.tensor}s of layer ${worst.layer} cost most, ${kvcal.short(worst.value)} nats, ` +
      `${kvcal.percent(worst.value / sum, 0)} of the sum. All tensors add up to ${kvcal.short(sum)}${whole}.`,
    table: {
      head: ['Layer', ...names.flatMap((name) => [`${kvcal.tensorTitle(name)}, KL mean`, '\u00b1', 'KL p99'])],
      rows: method.layers.map((layer) => [layer.layer, ...names.flatMap((name) => {
        const tensor = layer[name] || {};
        return [tensor.kld_mean, tensor.kld_stderr, tensor.kld_p99];
      })]),
    },
  };
}
