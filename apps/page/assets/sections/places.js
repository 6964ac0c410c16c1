// places.js: the sections that hold pictures and few words: layers, decoding, the codebook.

kvcal.sections.push({
  id: 'layers',
  order: 20,
  nav: 'Layers',
  title: 'Where it hurts',
  wanted: (data) => kvcal.validation(data) !== null || data.codebook !== null,
  intro: () => 'Layers do not suffer alike, nor do keys and values. The divergence of one tensor stored alone says where ' +
    'more bits would help; errors of reconstruction show how well the numbers come back, which is another matter.',
  content: (data) => [weakestTable(data)],
});

kvcal.sections.push({
  id: 'decoding',
  order: 30,
  nav: 'Decoding',
  title: 'While the model writes',
  wanted: (data) => kvcal.validation(data) !== null,
  intro: () => 'A perplexity reads a text that is given. A server decodes: the model reads its own quantised past, and ' +
    'damage can build up.',
});

kvcal.sections.push({
  id: 'codebook',
  order: 50,
  nav: 'Codebook',
  title: 'The codebook',
  wanted: (data) => data.codebook !== null,
  intro: () => 'Keys are stored before rotary embedding (RoPE), each channel within its own thresholds; values within a ' +
    'range found at run time. Each layer has its own levels, fitted to the loss\u2019s sensitivity.',
});

// For each method the tensor that suffers most: by what it costs alone where that was measured, else by its weighted error.
function weakestTable(data) {
  const report = kvcal.validation(data);
  if (!report) return null;
  const rows = [];
  for (const method of report.methods) {
    const worst = weakestTensor(method);
    if (worst) rows.push([method.name, worst.layer, worst.tensor + 's', worst.cost, worst.dropped]);
  }
  if (rows.length === 0) return null;
  const alone = rows.length > 0 && report.methods.some((m) => tensorsOf(m).some((one) => kvcal.isNumber(one.data.kld_mean)));
  const head = alone ? 'KL mean, stored alone' : 'Weighted error';
  const columns = [{head: 'Method', header: true, plain: true}, {head: 'Layer'}, {head: 'Tensor', plain: true},
    {head, format: (v) => kvcal.number(v, 5)}];
  if (rows.some((row) => row[4] > 0)) columns.push({head: 'Outliers dropped', format: (v) => kvcal.percent(v, 1)});
  return kvcal.table(columns, rows, {caption: 'The tensor that suffers most, by method', sortable: true});
}

// All tensors of a method's layers: {layer, tensor, data}.
function tensorsOf(method) {
  return (method.layers || []).flatMap((layer) => Object.entries(layer)
    .filter(([name, tensor]) => name !== 'layer' && tensor && typeof tensor === 'object')
    .map(([tensor, data]) => ({layer: layer.layer, tensor, data})));
}

function weakestTensor(method) {
  let worst = null;
  for (const {layer, tensor, data} of tensorsOf(method)) {
    const cost = [data.kld_mean, data.weighted, data.relative].find(kvcal.isNumber);
    if (!kvcal.isNumber(cost) || (worst && cost <= worst.cost)) continue;
    worst = {layer, tensor, cost, dropped: data.outliers_dropped};
  }
  return worst;
}
