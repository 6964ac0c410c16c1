// overview.js: what this page is, in two sentences, and what it found, in a few figures.

kvcal.sections.push({
  id: 'overview',
  order: 0,
  content: (data) => [
    kvcal.el('header', {}, kvcal.el('h1', {id: 'title'}, overviewTitle(data)),
      kvcal.el('p', {class: 'lead'}, overviewLead(data))),
    keyFigures(overviewFigures(data)),
    warnings(data),
  ],
});

function modelName(data) {
  if (data.codebook) return data.codebook.model.name;
  if (data.report) return data.report.model;
  return data.plans && data.plans.length > 0 ? data.plans[0].model : 'a model';
}

function overviewTitle(data) {
  const name = modelName(data);
  const titles = {
    validate: 'What a quantised KV cache costs ' + name,
    calibrate: 'A KV-cache codebook for ' + name,
    inspect: 'The KV-cache codebook of ' + name,
    plan: 'What KV cache of ' + name + ' fits in memory',
  };
  return titles[data.kind] || name;
}

function overviewLead(data) {
  const report = kvcal.validation(data);
  if (report) {
    return `kvcal ran ${report.model} over ${kvcal.count(report.windows)} windows of ${kvcal.count(report.seqlen)} tokens` +
      `, once in full precision (fp, ${report.dtype}) and ` +
      'once with its KV cache stored by each method. Below stands what each method costs in quality and takes in memory, ' +
      'which layers suffer, and what the codebook is made of.';
  }
  if (data.kind === 'plan') {
    return 'What the KV cache takes in memory at several context lengths, by the method that stores it. Nothing was run: ' +
      'sizes follow from the model\u2019s shape and from how each method stores a value.';
  }
  return 'A codebook says how to store this model\u2019s keys and values in 2 to 4 bits: each key channel\u2019s thresholds, ' +
    'and the ' +
    'levels fitted to each layer. This page shows what was fitted, whether the sample was enough, and where it comes from.';
}

function overviewFigures(data) {
  if (kvcal.validation(data)) return validationFigures(data.report);
  return data.kind === 'plan' ? planFigures(data) : codebookFigures(data);
}

// The method that the headline speaks of: the smallest within limits; else the smallest that keeps close to fp.
kvcal.headline = (report) => {
  const methods = report.methods.filter((method) => method.name !== 'fp');
  const byBits = [...methods].sort((a, b) => a.bits_per_value - b.bits_per_value);
  if ('smallest_within_limits' in report) {
    const method = methods.find((one) => one.name === report.smallest_within_limits) || null;
    return {method, why: method ? 'the smallest within the limits that were set' : 'no method is within the limits that were ' +
      'set'};
  }
  const close = byBits.find((one) => kvcal.isNumber(one.kld_mean) && one.kld_mean <= 0.01);
  if (close) return {method: close, why: 'the fewest bits with a mean KL of at most 0.01 nats (no limits were set)'};
  const least = methods.filter((one) => kvcal.isNumber(one.kld_mean)).sort((a, b) => a.kld_mean - b.kld_mean)[0];
  return {method: least || null, why: 'the least mean KL of those measured; none is at 0.01 nats or below'};
};

function validationFigures(report) {
  const fp = report.methods.find((method) => method.name === 'fp');
  const {method, why} = kvcal.headline(report);
  if (!method) return [{figure: 'None', text: why}];
  const share = fp ? method.bits_per_value / fp.bits_per_value : NaN;
  const noise = Math.abs(method.ppl_delta) < 2 * method.ppl_delta_stderr;
  return [
    {figure: method.name, text: why},
    {figure: kvcal.number(method.bits_per_value, 2), value: method.bits_per_value,
      text: 'bits a value, all counted' +
        (fp ? `: ${kvcal.percent(share, 0)} of fp\u2019s ${kvcal.short(fp.bits_per_value)}` : '')},
    {figure: kvcal.signed(method.ppl_delta, 3), value: method.ppl_delta, text: 'perplexity' + (fp
      ? `, from ${kvcal.number(fp.ppl, 3)} in full precision` : '') + (noise ? '; within noise' : '')},
    {figure: kvcal.percent(method.top1_agreement, 1), value: method.top1_agreement,
      text: 'of positions choose the same next token as full precision'},
  ];
}

function codebookFigures(data) {
  const book = data.codebook;
  if (!book) return [];
  const sets = book.layers.length > 0 && book.layers[0].key ? book.layers[0].key.outliers : [];
  const bits = [...new Set(sets.flatMap((set) => (set.datatypes || []).map((datatype) => datatype.bits)))];
  const sample = book.summary && book.summary.sample;
  return [
    {figure: kvcal.count(book.layers.length), value: book.layers.length,
      text: `layers, ${book.model.num_kv_heads} key-value heads of ${book.model.head_dim} channels`},
    {figure: bits.join(', ') || kvcal.dash, text: 'bits, with outliers apart: ' +
      sets.map((set) => (set.fraction > 0 ? kvcal.short(100 * set.fraction) + '\u00a0%' : 'none')).join(', ')},
    {figure: kvcal.count(book.calibration.tokens), value: book.calibration.tokens,
      text: `tokens of calibration, perplexity ${kvcal.number(book.calibration.perplexity, 2)}`},
    sample ? {figure: sample.enough ? 'Enough' : 'Too little', text: 'calibration text, by comparing its two halves'} : null,
  ].filter(Boolean);
}

function planFigures(data) {
  const plan = data.plans[data.plans.length - 1];
  if (!plan) return [];
  const sizes = [...plan.methods].sort((a, b) => a.cache_bytes - b.cache_bytes);
  return [
    {figure: kvcal.tokens(plan.context), value: plan.context, text: `tokens of context, ${plan.batch === 1 ? 'one sequence'
      : kvcal.count(plan.batch) + ' sequences at once'}, the longest of this page`},
    {figure: kvcal.bytes(sizes[sizes.length - 1].cache_bytes), value: sizes[sizes.length - 1].cache_bytes,
      text: 'of cache with ' + sizes[sizes.length - 1].name},
    {figure: kvcal.bytes(sizes[0].cache_bytes), value: sizes[0].cache_bytes, text: 'of cache with ' + sizes[0].name},
  ];
}

function keyFigures(figures) {
  return kvcal.el('dl', {class: 'figures'}, figures.map((one) => kvcal.el('div', {},
    kvcal.el('dd', {class: 'figure', 'data-value': kvcal.isNumber(one.value) ? JSON.stringify(one.value) : null}, one.figure),
    kvcal.el('dt', {}, one.text))));
}

function warnings(data) {
  const texts = (data.report && data.report.warnings) || [];
  if (texts.length === 0) return null;
  return kvcal.el('div', {class: 'notice', role: 'note', 'aria-label': 'Warnings of this run'},
    kvcal.el('strong', {}, texts.length === 1 ? 'A warning of this run' : `${texts.length} warnings of this run`),
    kvcal.el('ul', {}, texts.map((text) => kvcal.el('li', {}, text))));
}
