// layer-errors.js: how well keys and values of each layer come back.

const errorMeasures = {
  weighted: {text: 'Weighted', axis: 'Weighted relative error'},
  relative: {text: 'Relative', axis: 'Relative error'},
  mse: {text: 'Mean square (mse)', axis: 'Mean square error'},
};

const hasErrors = (tensor) => kvcal.isNumber(tensor.relative) || kvcal.isNumber(tensor.mse);

kvcal.pictures.push({
  id: 'layer-errors',
  section: 'layers',
  order: 20,
  title: 'Error of reconstruction, layer by layer',
  about: 'How far stored keys and values lie from the exact ones, on the activations of the fp run. Relative is the squared ' +
    'error as ' +
    'a share of the square of the numbers; weighted counts each channel by how much the loss feels it (Fisher); the mean ' +
    'square ' +
    'error has the tensor\u2019s own scale, so that layers do not compare.',
  wanted: (data) => kvcal.validation(data) !== null,
  missing: (data) => (kvcal.layerMethods(data, hasErrors).length > 0 ? null : 'No method that stores anything was measured.'),
  controls: (data) => [
    kvcal.methodControl(data, kvcal.layerMethods(data, hasErrors)),
    {name: 'measure', label: 'Error', initial: data.codebook || weightedThere(data) ? 'weighted' : 'relative',
      options: Object.entries(errorMeasures).map(([value, {text}]) => ({value, text}))},
  ],
  draw: drawLayerErrors,
});

function weightedThere(data) {
  return kvcal.layerMethods(data, (tensor) => kvcal.isNumber(tensor.weighted)).length > 0;
}

function drawLayerErrors(data, choice, theme) {
  const method = data.report.methods.find((one) => one.name === choice.method);
  const read = (tensor) => tensor[choice.measure];
  const worst = kvcal.largestTensor(method, read);
  const measure = errorMeasures[choice.measure];
  const names = kvcal.tensorNames(method);
  return {
    traces: kvcal.layerTraces(method, theme, read),
    layout: {xaxis: kvcal.layerAxis(method, theme), yaxis: {title: measure.axis, rangemode: 'tozero'}},
    summary: worst === null ? `${method.name} has no such error: the weighted one needs a codebook\u2019s sensitivities.`
      : `${method.name}: ${worst.tensor}s of layer ${worst.layer} come back worst, with a ` +
        `${measure.axis.toLowerCase()} of ${kvcal.short(worst.value)}.`,
    table: {
      head: ['Layer', ...names.map((name) => `${kvcal.tensorTitle(name)}, ${measure.axis.toLowerCase()}`)],
      rows: method.layers.map((layer) => [layer.layer, ...names.map((name) => (layer[name] ? read(layer[name]) : null))]),
    },
  };
}
