// memory.js: what the cache takes, by context and method, and whether it fits.

kvcal.sections.push({
  id: 'memory',
  order: 40,
  nav: 'Memory',
  title: 'What fits in memory',
  wanted: (data) => (data.plans || []).length > 0,
  intro: (data) => memoryIntro(data.plans[0]),
  content: (data) => [memoryWarnings(data.plans)],
  after: (data) => [memoryTable(data.plans), fitsTable(data.plans), memoryNote(data.plans[0])],
});

function memoryIntro(plan) {
  const many = plan.batch === 1 ? 'one sequence' : kvcal.count(plan.batch) + ' sequences at once';
  const gpus = plan.gpus === 1 ? 'one GPU' : kvcal.count(plan.gpus) + ' GPUs';
  const memory = kvcal.isNumber(plan.gpu_memory_bytes) ? ` of ${kvcal.bytes(plan.gpu_memory_bytes, 1)}` : '';
  return `For ${many} on ${gpus}${memory}: ${kvcal.count(plan.layers)} layers of ` +
    `${kvcal.count(plan.kv_heads)} key-value heads, ` +
    `${kvcal.count(plan.head_dim)} channels each` + (kvcal.isNumber(plan.weights_bytes)
    ? `; weights take ${kvcal.bytes(plan.weights_bytes)} (${plan.weights_dtype}).` : '. The size of the weights is not known.');
}

// Those of the longest context, which has them all.
function memoryWarnings(plans) {
  const texts = plans[plans.length - 1].warnings || [];
  if (texts.length === 0) return null;
  return kvcal.el('div', {class: 'notice', role: 'note'}, texts.map((text) => kvcal.el('p', {}, text + '.')));
}

// One row for each method, one column for each context.
function memoryTable(plans) {
  const names = [...new Set(plans.flatMap((plan) => plan.methods.map((method) => method.name)))];
  const find = (plan, name) => plan.methods.find((method) => method.name === name);
  const columns = [{head: 'Method', header: true, plain: true}, {head: 'Bits/value', format: (v) => kvcal.number(v, 2)},
    ...plans.map((plan) => ({head: kvcal.tokens(plan.context), format: (v) => kvcal.bytes(v)}))];
  const rows = names.map((name) => {
    const last = [...plans].reverse().map((plan) => find(plan, name)).find(Boolean);
    return [name, last.bits_per_value, ...plans.map((plan) => (find(plan, name) || {}).cache_bytes)];
  });
  return kvcal.table(columns, rows, {
    caption: 'Cache by method and context, in all' + (plans.length > 1 ? '; bits/value at the longest' : ''), sortable: true,
    note: (value, row, at) => {
      const method = at >= 2 ? find(plans[at - 2], row[0]) : null;
      return method && method.fits === false ? kvcal.el('span', {class: 'aside'}, 'does not fit') : null;
    },
  });
}

// What else a plan says about each method, for the longest context.
function fitsTable(plans) {
  const plan = plans[plans.length - 1];
  const bytes = (v) => kvcal.bytes(v);
  const all = [
    {head: 'Method', header: true, plain: true, of: (m) => m.name},
    {head: 'Cache per GPU', format: bytes, of: (m) => m.cache_bytes_per_gpu},
    {head: 'Tables, once', format: bytes, of: (m) => m.static_bytes},
    {head: 'As KVQuant counts', format: bytes, of: (m) => m.kvquant_bytes},
    {head: 'With weights, per GPU', format: bytes, of: (m) => m.total_bytes_per_gpu},
    {head: 'Fits', plain: true, of: (m) => (typeof m.fits === 'boolean' ? (m.fits ? 'yes' : 'no') : null),
      format: (v) => v || kvcal.dash},
    {head: 'Left over', format: bytes, of: (m) => m.margin_bytes},
    {head: 'Longest context', format: (v) => kvcal.count(v), of: (m) => m.largest_context},
  ];
  const told = (column) => plan.methods.some((m) => column.of(m) !== null && column.of(m) !== undefined);
  const columns = all.filter(told);
  return kvcal.el('details', {class: 'numbers'}, kvcal.el('summary', {}, `More about ${kvcal.tokens(plan.context)} tokens`),
    kvcal.table(columns, plan.methods.map((m) => columns.map((column) => column.of(m))),
      {caption: `At a context of ${kvcal.count(plan.context)} tokens`, sortable: true}));
}

function memoryNote(plan) {
  const parts = ['Sizes are in powers of 1024. The cache counts codes, scales, outliers with their places and exact tokens.'];
  if (plan.methods.some((m) => kvcal.isNumber(m.kvquant_bytes))) {
    parts.push('\u201cAs KVQuant counts\u201d is codes and outliers alone, as in the tables of its paper.');
  }
  if (!kvcal.isNumber(plan.gpu_memory_bytes)) parts.push('No GPU memory was given, so nothing is said about what fits.');
  return kvcal.el('p', {class: 'aside'}, parts.join(' '));
}
