// methods.js: the table of all methods that were measured, each column explained.

kvcal.sections.push({
  id: 'methods',
  order: 10,
  nav: 'Methods',
  title: 'Methods compared',
  wanted: (data) => kvcal.validation(data) !== null,
  intro: () => 'One row for each way to store the cache. Fewer bits take less memory; the columns behind tell what that ' +
    'costs. Choose a column\u2019s head to sort by it.',
  content: (data) => [methodsTable(data.report), columnHelp(), methodsNote(data.report)],
});

const apart = (row, text) => (row[0] === 'fp' ? '' : text);

const methodColumns = [
  {head: 'Method', plain: true, header: true, value: (m) => m.name},
  {head: 'Bits/value', value: (m) => m.bits_per_value, format: (v) => kvcal.number(v, 2),
    about: 'All that a sequence stores, by number: codes, scales, outliers with their places, exact tokens. Tables that ' +
      'exist once for the model are not in it. fp is the type that the model was computed in.'},
  {head: 'Perplexity', value: (m) => m.ppl, format: (v) => kvcal.number(v, 3),
    about: 'exp of the mean \u2212log p of the scored tokens. It compares only with perplexities under the same protocol.'},
  {head: 'Change', value: (m) => m.ppl_delta, format: (v, row) => apart(row, kvcal.signed(v, 3)),
    about: 'Perplexity less fp\u2019s. Below twice its standard error it is marked within noise.'},
  {head: '\u00b1', value: (m) => m.ppl_delta_stderr, format: (v, row) => apart(row, kvcal.number(v, 3)),
    about: 'Standard error of the change over windows. Both runs read the same windows, so it is far smaller than the error ' +
      'of either perplexity.'},
  {head: 'KL mean', value: (m) => m.kld_mean, format: (v, row) => apart(row, kvcal.number(v, 5)),
    about: 'KL(fp || method) of the next token\u2019s distribution in nats, mean over positions. It sees what perplexity ' +
      'averages away; use it first to rank methods.'},
  {head: '\u00b1', value: (m) => m.kld_stderr, format: (v, row) => apart(row, kvcal.number(v, 5)),
    about: 'Standard error of the mean KL over windows.'},
  {head: 'KL p99', value: (m) => m.kld_p99, format: (v, row) => apart(row, kvcal.number(v, 4)),
    about: '99th percentile of that KL over positions: how bad the worst hundredth of tokens gets.'},
  {head: 'Same top-1 %', value: (m) => m.top1_agreement, format: (v, row) => apart(row, kvcal.number(100 * v, 2)),
    about: 'Positions where both would choose the same token. Full numbers in the page are shares of 1.'},
  {head: 'Attention %', value: (m) => m.attention_agreement,
    format: (v, row) => apart(row, kvcal.isNumber(v) ? kvcal.number(100 * v, 2) : kvcal.dash),
    about: 'Of the attention that fp\u2019s queries give, the share that falls on the same tokens when keys are read as ' +
      'stored. Retrieval hangs on it, and perplexity hardly sees it.'},
];

function methodsTable(report) {
  const rows = report.methods.map((method) => methodColumns.map((column, at) =>
    (method.name === 'fp' && at > 2 ? null : column.value(method))));
  const best = report.smallest_within_limits;
  const byName = new Map(report.methods.map((method) => [method.name, method]));
  return kvcal.table(methodColumns, rows, {
    caption: `Methods: ${kvcal.count(report.windows)} windows of ${kvcal.count(report.seqlen)} tokens, ` +
      `${kvcal.count(report.scored)} scored, protocol ${report.protocol}, BOS ${report.bos}, ${report.dtype}`,
    sortable: true,
    rowClass: (row) => (best && row[0] === best ? 'best' : null),
    note: (value, row, at) => {
      if (at === 0 && best && value === best) return kvcal.el('span', {class: 'mark'}, 'smallest within limits');
      return at === 0 && withinNoise(byName.get(value)) ? kvcal.el('span', {class: 'aside'}, 'change within noise') : null;
    },
  });
}

function withinNoise(method) {
  return method.name !== 'fp' && kvcal.isNumber(method.ppl_delta) &&
    Math.abs(method.ppl_delta) < 2 * method.ppl_delta_stderr;
}

function columnHelp() {
  const titles = methodColumns.map((column, at) =>
    (column.head === '\u00b1' ? '\u00b1 of ' + methodColumns[at - 1].head : column.head));
  return kvcal.el('details', {class: 'help', open: true}, kvcal.el('summary', {}, 'What each column says'),
    kvcal.el('dl', {class: 'terms'}, methodColumns.map((column, at) => (column.about
      ? kvcal.el('div', {}, kvcal.el('dt', {}, titles[at]), kvcal.el('dd', {}, column.about)) : null))));
}

function methodsNote(report) {
  if (!('smallest_within_limits' in report)) {
    return kvcal.el('p', {class: 'aside'}, kvcal.marked('No limits were set. With --max-kld or --max-ppl-delta the table ' +
      'marks the method within them that takes fewest bits.'));
  }
  if (report.smallest_within_limits) return null;
  return kvcal.el('p', {class: 'notice'},
    kvcal.marked('No method is within the limits that were set (--max-kld, --max-ppl-delta).'));
}
