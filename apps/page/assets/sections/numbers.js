// numbers.js: the page's data for other programs.

kvcal.sections.push({
  id: 'numbers',
  order: 80,
  nav: 'Data',
  title: 'The numbers',
  content: (data) => [
    kvcal.el('p', {}, 'Everything on this page is drawn from data that lies in the page itself. This saves it as plain JSON, ' +
      'its arrays ' +
      'as lists of numbers:'),
    kvcal.el('p', {}, kvcal.el('button', {type: 'button', class: 'action', id: 'download', onclick: () => download(data)},
      'Download the data as JSON')),
    kvcal.el('p', {class: 'aside'}, 'In the file, the JSON is the text of the element ',
      kvcal.el('code', {}, '<script type="application/json" id="kvcal-data">'), '. Arrays of float32 are ',
      kvcal.el('code', {}, '{"f4": "\u2026"}'), ' there: base64 of little-endian float32. ', reportSource(data)),
  ],
});

function reportSource(data) {
  const parts = [];
  if (data.report) parts.push(`"report" is what kvcal ${data.kind} --json prints`);
  if (data.codebook) parts.push('"codebook" is what kvcal inspect --json prints, with its arrays');
  if ((data.plans || []).length > 0) parts.push('"plans" is what kvcal plan --json prints, one for each context');
  return parts.length > 0 ? kvcal.marked(parts.join('; ') + '.') : null;
}

function download(data) {
  const blob = new Blob([JSON.stringify(kvcal.expanded(data), null, 1)], {type: 'application/json'});
  const address = URL.createObjectURL(blob);
  const link = kvcal.el('a', {href: address, download: `kvcal-${data.kind}.json`});
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}
