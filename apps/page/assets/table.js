// table.js: tables whose cells keep the full number beside the text, and that can be sorted by a column.

// columns: [{head, about, format(value, row), plain (text, to the left), header (names its row), sort (false: no button)}]
// rows: arrays of values. options: {caption, sortable, rowClass(row), note(value, row, column) -> element beside the text}.
kvcal.table = (columns, rows, options = {}) => {
  const body = kvcal.el('tbody', {}, rows.map((row) => tableRow(columns, row, options)));
  const heads = columns.map((column, at) => tableHead(column, at, body, options.sortable));
  const table = kvcal.el('table', {class: options.sortable ? 'sortable' : null},
    options.caption ? kvcal.el('caption', {}, kvcal.el('span', {}, options.caption)) : null,
    kvcal.el('thead', {}, kvcal.el('tr', {}, heads)), body);
  return kvcal.el('div', {class: 'scroll', tabindex: '0', role: 'region', 'aria-label': options.caption || 'Table'}, table);
};

function tableHead(column, at, body, sortable) {
  const head = kvcal.el('th', {scope: 'col', class: column.plain ? 'plain' : null});
  if (!sortable || column.sort === false) {
    head.append(column.head);
    return head;
  }
  const button = kvcal.el('button', {type: 'button', onclick: () => sortTable(body, head, at)},
    column.head, kvcal.el('span', {class: 'arrow', 'aria-hidden': 'true'}));
  head.append(button);
  return head;
}

function tableRow(columns, row, options) {
  const cells = columns.map((column, at) => {
    const value = row[at];
    const text = column.format ? column.format(value, row) : cellText(value);
    return kvcal.el(column.header ? 'th' : 'td', {
      scope: column.header ? 'row' : null,
      class: column.plain ? 'plain' : null,
      'data-value': kvcal.isNumber(value) ? JSON.stringify(value) : null,
      'data-sort': typeof value === 'string' ? value : null,
    }, text, options.note ? options.note(value, row, at) : null);
  });
  return kvcal.el('tr', {class: options.rowClass ? options.rowClass(row) : null}, cells);
}

function cellText(value) {
  if (typeof value === 'string') return value;
  if (typeof value === 'boolean') return value ? 'yes' : 'no';
  return kvcal.short(value, 4);
}

// Ascending at first, then the other way; what is missing stays last. The direction is told by aria-sort.
function sortTable(body, head, at) {
  const up = head.getAttribute('aria-sort') !== 'ascending';
  for (const other of head.parentNode.children) other.removeAttribute('aria-sort');
  head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
  const keyed = [...body.rows].map((row) => ({row, key: sortKey(row.cells[at])}));
  keyed.sort((a, b) => compareKeys(a.key, b.key, up));
  body.append(...keyed.map((entry) => entry.row));
}

function sortKey(cell) {
  if (cell.hasAttribute('data-value')) return Number(cell.getAttribute('data-value'));
  return cell.getAttribute('data-sort') || null;
}

function compareKeys(a, b, up) {
  if (a === null || b === null) return (a === null) - (b === null);
  const order = typeof a === 'number' && typeof b === 'number' ? a - b
    : String(a).localeCompare(String(b), 'en', {numeric: true});
  return up ? order : -order;
}

// The table of a picture: {head: [...], rows: [[...]]}, text to the left, numbers to the right.
kvcal.plainTable = (table, caption) => {
  const columns = table.head.map((head, at) => ({
    head, header: at === 0, plain: table.rows.every((row) => typeof row[at] === 'string'),
  }));
  return kvcal.table(columns, table.rows, {caption});
};
