// sample.js: whether the calibration text was enough, told by the two halves of the sample.

kvcal.sections.push({
  id: 'sample',
  order: 60,
  nav: 'Sample',
  title: 'Was the calibration sample enough?',
  wanted: (data) => data.codebook !== null,
  content: (data) => sampleContent(data.codebook),
});

function sampleContent(book) {
  const sample = book.summary && book.summary.sample;
  if (!sample) return [kvcal.el('p', {class: 'missing'}, 'This page has no summary of the sample. ' +
    'kvcal inspect FILE.h5 of this version says it.')];
  const answer = sample.enough ? 'Yes. The two halves of the sample agree within the limits.'
    : 'No. The two halves of the sample differ by more than the limits allow.';
  return [
    kvcal.el('p', {class: 'intro'}, kvcal.el('strong', {}, answer), ' ', sample.advice || ''),
    sampleTable(sample),
    kvcal.el('p', {class: 'aside'}, 'Half of the sample is fitted apart and compared with the other half. A shift near 0 ' +
      'says that more ' +
      'text of the same kind would change little. It says nothing about text of another kind: for that, see the outliers met ' +
      'by kvcal validate.'),
  ];
}

function sampleTable(sample) {
  const columns = [
    {head: 'What is compared', header: true, plain: true},
    {head: 'Found', format: (v) => kvcal.percent(v, 2)},
    {head: 'Limit', format: (v) => kvcal.percent(v, 0)},
    {head: 'Within', plain: true},
  ];
  const within = (value, limit) =>
    (!kvcal.isNumber(value) || !kvcal.isNumber(limit) ? kvcal.dash : value <= limit ? 'yes' : 'no');
  return kvcal.table(columns, [
    ['Thresholds: how far they move, in ranges of the channel', sample.threshold_shift, sample.threshold_shift_limit,
      within(sample.threshold_shift, sample.threshold_shift_limit)],
    ['Levels: what one half\u2019s cost in excess on the other', sample.datatype_excess, sample.datatype_excess_limit,
      within(sample.datatype_excess, sample.datatype_excess_limit)],
  ], {caption: 'The two halves of the calibration sample'});
}
