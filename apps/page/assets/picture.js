// picture.js: puts a picture on the page: heading, controls, the plot, what it shows in words, and its numbers as a table.

// The element of a picture, or of the reason why there is none.
kvcal.figure = (picture, data) => {
  const id = 'picture-' + picture.id;
  const figure = kvcal.el('figure', {id, class: 'picture', 'aria-labelledby': id + '-title'},
    kvcal.el('h3', {id: id + '-title'}, picture.title), kvcal.el('p', {class: 'about'}, kvcal.marked(picture.about)));
  let missing = null, controls = [];
  try {
    missing = picture.missing ? picture.missing(data) : null;
    if (!missing) controls = (picture.controls ? picture.controls(data) : []).filter((one) => one.options.length > 0);
  } catch (error) {
    console.error(picture.id, error);
    missing = 'This picture could not be made from the data: ' + error.message;
  }
  if (missing) {
    figure.append(kvcal.el('p', {class: 'missing'}, kvcal.marked(missing)));
    return figure;
  }
  const state = pictureState(picture, data, controls, figure);
  figure.append(...[state.form, state.plot, state.summary, state.details].filter(Boolean));
  kvcal.drawn.push(state);
  return figure;
};

// Pictures on the page that can be drawn.
kvcal.drawn = [];

function pictureState(picture, data, controls, figure) {
  const state = {picture, data, figure, choice: {}, draws: 0, seen: false, turn: 0};
  state.plot = kvcal.el('div', {class: 'plot', role: 'img', 'aria-label': picture.title, 'data-drawn': '0'});
  state.summary = kvcal.el('figcaption', {class: 'summary', 'aria-live': 'polite'});
  state.details = kvcal.el('details', {class: 'numbers'}, kvcal.el('summary', {}, 'The numbers behind this picture'));
  state.details.ontoggle = () => state.details.open && fillDetails(state);
  state.form = controls.length === 0 ? null
    : kvcal.el('div', {class: 'controls', role: 'group', 'aria-label': 'What to show: ' + picture.title},
      controls.map((control) => controlElement(state, control)));
  return state;
}

function controlElement(state, control) {
  const id = 'picture-' + state.picture.id + '-' + control.name;
  const initial = control.initial === undefined ? control.options[0].value : control.initial;
  state.choice[control.name] = initial;
  const select = kvcal.el('select', {id, name: control.name}, control.options.map((option) =>
    kvcal.el('option', {value: option.value, selected: String(option.value) === String(initial)}, String(option.text))));
  // The value as the picture gave it, which may be a number.
  select.onchange = () => {
    state.choice[control.name] = control.options[select.selectedIndex].value;
    drawPicture(state);
  };
  return kvcal.el('div', {class: 'control'}, kvcal.el('label', {for: id}, control.label), select);
}

// Draws with what is chosen now. The words and the table do not need plotly.
async function drawPicture(state) {
  state.seen = true;
  const turn = ++state.turn;
  const theme = kvcal.theme();
  let made;
  try {
    made = state.picture.draw(state.data, {...state.choice}, theme);
  } catch (error) {
    console.error(state.picture.id, error);
    state.summary.textContent = 'This picture could not be drawn: ' + error.message;
    return;
  }
  state.made = made;
  state.summary.textContent = made.summary || '';
  state.plot.setAttribute('aria-label', state.picture.title + '. ' + (made.summary || ''));
  state.details.hidden = !made.table;
  state.filled = false;
  if (state.details.open || (made.table && made.table.rows.length <= 200)) fillDetails(state);
  await plot(state, made, theme, turn);
}

async function plot(state, made, theme, turn) {
  let plotly;
  try {
    plotly = await kvcal.plotly();
  } catch (error) {
    kvcal.tellNoPictures(error);
    state.plot.hidden = true;
    return;
  }
  if (turn !== state.turn) return;
  try {
    const layout = kvcal.layout(theme, made.layout || {});
    state.plot.style.height = layout.height + 'px';
    await plotly.react(state.plot, made.traces, layout, kvcal.plotConfig(state.picture));
  } catch (error) {
    console.error(state.picture.id, error);
    state.summary.textContent = 'This picture could not be drawn: ' + error.message;
    return;
  }
  state.plot.setAttribute('data-drawn', String(++state.draws));
}

function fillDetails(state) {
  if (state.filled || !state.made || !state.made.table) return;
  state.filled = true;
  const summary = state.details.querySelector('summary');
  state.details.replaceChildren(summary, kvcal.plainTable(state.made.table, state.picture.title + ': the numbers'));
}

kvcal.plotConfig = (picture) => ({
  responsive: true,
  displaylogo: false,
  showTips: false,
  scrollZoom: false,
  doubleClick: 'reset',
  modeBarButtons: [['zoom2d', 'resetScale2d', 'toImage']],
  toImageButtonOptions: {format: 'png', filename: 'kvcal-' + picture.id, scale: 2},
});

// A picture's layout upon the page's own: fonts, colours, grid, margins, legend.
kvcal.layout = (theme, own) => {
  const layout = merged(baseLayout(theme), own);
  const axis = axisStyle(theme);
  for (const name of new Set(['xaxis', 'yaxis', ...Object.keys(own).filter((key) => /^[xy]axis\d*$/.test(key))])) {
    layout[name] = merged(axis, typeof own[name] === 'object' ? own[name] : {});
    if (typeof layout[name].title === 'string') layout[name].title = {text: layout[name].title};
    if (theme.small && name.startsWith('x') && !own[name]?.nticks) layout[name].nticks = 6;
  }
  if (theme.small) layout.legend = merged(layout.legend, smallLegend());
  else if (!own.legend) layout.legend = merged(layout.legend, wideLegend());
  return layout;
};

function baseLayout(theme) {
  return {
    height: theme.small ? 400 : 440,
    autosize: true,
    font: {family: 'system-ui, -apple-system, "Segoe UI", Roboto, sans-serif', size: theme.small ? 12 : 13, color: theme.text},
    paper_bgcolor: theme.background,
    plot_bgcolor: theme.background,
    colorway: theme.palette,
    margin: theme.small ? {l: 48, r: 8, t: 34, b: 44} : {l: 64, r: 16, t: 34, b: 52},
    hovermode: 'closest',
    dragmode: theme.small ? false : 'zoom',
    hoverlabel: {bgcolor: theme.background, bordercolor: theme.muted, font: {color: theme.text}},
    legend: {bgcolor: 'rgba(0,0,0,0)', font: {size: 12}},
    modebar: {bgcolor: 'rgba(0,0,0,0)', color: theme.muted, activecolor: theme.text},
  };
}

function wideLegend() {
  return {orientation: 'h', x: 0, xanchor: 'left', y: 1.02, yanchor: 'bottom'};
}

function smallLegend() {
  return {orientation: 'h', x: 0, xanchor: 'left', y: -0.22, yanchor: 'top'};
}

function axisStyle(theme) {
  return {
    gridcolor: theme.grid, zerolinecolor: theme.grid, linecolor: theme.muted, tickcolor: theme.muted,
    automargin: true, zeroline: false, title: {font: {size: 13}, standoff: 8},
  };
}

function merged(base, over) {
  const result = {...base};
  for (const [key, value] of Object.entries(over)) {
    const both = isObject(value) && isObject(base[key]);
    result[key] = both ? merged(base[key], value) : value;
  }
  return result;
}

function isObject(value) {
  return value !== null && typeof value === 'object' && !Array.isArray(value);
}

kvcal.tellNoPictures = (error) => {
  if (document.getElementById('no-pictures')) return;
  const notice = kvcal.el('p', {id: 'no-pictures', class: 'notice', role: 'status'},
    'Pictures need a newer browser (' + error.message + '). The tables, the words beside each picture and the numbers are ' +
    'all here.');
  document.getElementById('main').prepend(notice);
};

// Draws the first picture at once and the others as they come near; all again where light, width or paper change.
kvcal.startPictures = () => {
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const state = kvcal.drawn.find((one) => one.plot === entry.target);
      if (!entry.isIntersecting || state.seen) continue;
      watcher.unobserve(entry.target);
      drawPicture(state);
    }
  }, {rootMargin: '400px'});
  kvcal.drawn.forEach((state, at) => (at === 0 ? drawPicture(state) : watcher.observe(state.plot)));
  const again = () => kvcal.drawn.filter((state) => state.seen).forEach(drawPicture);
  kvcal.darkQuery.addEventListener('change', again);
  kvcal.smallQuery.addEventListener('change', again);
  window.addEventListener('beforeprint', () => {
    kvcal.printing = true;
    kvcal.drawn.forEach(drawPicture);
  });
  window.addEventListener('afterprint', () => {
    kvcal.printing = false;
    again();
  });
};
