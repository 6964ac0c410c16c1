// provenance.js: which model, texts and options the file was made from, with their hashes.

kvcal.sections.push({
  id: 'provenance',
  order: 70,
  nav: 'Origin',
  title: 'Where this comes from',
  wanted: (data) => data.codebook !== null || kvcal.validation(data) !== null,
  content: (data) => [
    data.codebook ? factList('Model', modelFacts(data.codebook)) : null,
    data.codebook ? factList('Calibration', calibrationFacts(data.codebook)) : null,
    data.codebook ? textsTable(data.codebook.calibration.texts) : null,
    kvcal.validation(data) ? factList('Validation', validationFacts(data.report)) : null,
    data.codebook ? optionsDetails(data.codebook) : null,
  ],
});

function factList(title, facts) {
  return [kvcal.el('h3', {}, title), kvcal.el('dl', {class: 'facts'}, facts
    .filter(([, value]) => value !== null && value !== undefined && value !== '')
    .map(([name, value]) => kvcal.el('div', {}, kvcal.el('dt', {}, name), kvcal.el('dd', {}, value))))];
}

// A hash, which may break anywhere.
function hash(text) {
  return text ? kvcal.el('code', {class: 'hash'}, text) : null;
}

function modelFacts(book) {
  const model = book.model;
  return [
    ['Name', model.name],
    ['Architecture', model.architecture],
    ['Shape', `${kvcal.count(model.num_layers)} layers, ${kvcal.count(model.num_attention_heads)} query heads, ` +
      `${kvcal.count(model.num_kv_heads)} key-value heads, head dimension ${kvcal.count(model.head_dim)}`],
    ['Configuration, SHA-256', hash(model.config_sha256)],
    ['Weights, SHA-256', hash(model.weights_sha256)],
  ];
}

function calibrationFacts(book) {
  const one = book.calibration;
  return [
    ['Made by', book.created_by],
    ['Format', book.schema.join('.')],
    ['Content, SHA-256', hash(book.content_sha256)],
    ['Sample', `${kvcal.count(one.samples)} of ${kvcal.count(one.seqlen)} tokens, ` +
      `${kvcal.count(one.tokens)} in all, seed ${one.seed}`],
    ['Tokens, SHA-256', hash(one.tokens_sha256)],
    ['BOS', one.bos],
    ['Exact first tokens (sinks)', String(one.sinks)],
    ['Computed in', `${one.dtype} on ${one.device}`],
    ['Value range found', one.value_scope === 'head' ? 'per token and head' : 'per ' + one.value_scope],
    ['Sensitivity', `${one.sensitivity}, scale ${one.fisher_scale}`],
    ['Perplexity of the sample', kvcal.number(one.perplexity, 3)],
  ];
}

function textsTable(texts) {
  if (!texts || texts.length === 0) return null;
  const columns = [{head: 'Text', header: true, plain: true}, {head: 'SHA-256', plain: true, format: (v) => hash(v)}];
  const table = kvcal.table(columns, texts.map((text) => [text.name, text.sha256]), {caption: 'Calibration texts'});
  if (texts.length <= 4) return table;
  return kvcal.el('details', {}, kvcal.el('summary', {}, `${kvcal.count(texts.length)} calibration texts`), table);
}

function validationFacts(report) {
  return [
    ['Codebook', report.codebook],
    ['Text scored', `${kvcal.count(report.windows)} windows of ${kvcal.count(report.seqlen)} tokens, ` +
      `${kvcal.count(report.scored)} of ` +
      `${kvcal.count(report.tokens)} tokens scored`],
    ['Protocol', `${report.protocol}, BOS ${report.bos}`],
    ['Computed in', report.dtype + (report.kernels ? ', kernels ' + report.kernels : '')],
    ['Decoded', report.generate > 0 ? `${kvcal.count(report.generate)} tokens after each window\u2019s beginning` : null],
    ['Took', `${kvcal.short(report.seconds)} s, ${kvcal.bytes(report.memory_bytes)} of memory foreseen`],
  ];
}

function optionsDetails(book) {
  return kvcal.el('details', {}, kvcal.el('summary', {}, 'Calibration options and rotary embedding, as JSON'),
    kvcal.el('pre', {tabindex: '0'}, JSON.stringify({options: book.calibration.options, rope: book.model.rope}, null, 2)));
}
