// core.js: the page's one namespace: its data, arrays, number formats, method styles, theme, and plotly.
'use strict';

const kvcal = {pictures: [], sections: []};

// The data of the page, as JSON text once and as an object.
kvcal.source = () => document.getElementById('kvcal-data').textContent;

kvcal.data = () => {
  if (!kvcal.cachedData) kvcal.cachedData = JSON.parse(kvcal.source());
  return kvcal.cachedData;
};

// The report of `validate`, or null on any other page.
kvcal.validation = (data) => (data.kind === 'validate' && data.report && data.report.methods ? data.report : null);

// Arrays ----------------------------------------------------------------------------------------------------------------

const decodedArrays = new WeakMap();

// Numbers of an array: {f4: base64 of little-endian float32}, decoded at the first use, or a plain array; else null.
kvcal.array = (value) => {
  if (!value || typeof value !== 'object') return null;
  if (typeof value.f4 !== 'string') return Array.isArray(value) ? value : null;
  if (!decodedArrays.has(value)) decodedArrays.set(value, decodeFloats(value.f4));
  return decodedArrays.get(value);
};

function decodeFloats(base64) {
  const text = atob(base64);
  const view = new DataView(new ArrayBuffer(text.length));
  for (let i = 0; i < text.length; ++i) view.setUint8(i, text.charCodeAt(i));
  const result = new Float32Array(Math.floor(text.length / 4));
  for (let i = 0; i < result.length; ++i) result[i] = view.getFloat32(4 * i, true);
  return result;
}

// The data with each {f4} as a list of numbers: float32 in the fewest digits that give the same float32 again.
kvcal.expanded = (value) => {
  if (value === null || typeof value !== 'object') return value;
  if (typeof value.f4 === 'string') return Array.from(kvcal.array(value), shortestFloat);
  if (Array.isArray(value)) return value.map(kvcal.expanded);
  return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, kvcal.expanded(part)]));
};

function shortestFloat(value) {
  if (!Number.isFinite(value)) return null;
  for (let digits = 6; digits < 9; ++digits) {
    const shorter = Number(value.toPrecision(digits));
    if (Math.fround(shorter) === value) return shorter;
  }
  return Number(value.toPrecision(9));
}

// Numbers as text -------------------------------------------------------------------------------------------------------

kvcal.dash = '\u2013';
kvcal.isNumber = (value) => typeof value === 'number' && Number.isFinite(value);

// `digits` decimals; fewer where a number is large, more where it would else read 0. Missing is an en dash.
kvcal.number = (value, digits = 3) => {
  if (!kvcal.isNumber(value)) return kvcal.dash;
  const size = Math.abs(value);
  if (size >= 1e7) return minus(value.toExponential(3));
  if (size >= 1e4) digits = 0;
  else if (size >= 1e3) digits = Math.min(digits, 1);
  if (size > 0 && size < 0.5 * 10 ** -digits) return minus(smallText(value, 2));
  return minus(value.toFixed(digits));
};

// `digits` significant digits.
kvcal.short = (value, digits = 3) => {
  if (!kvcal.isNumber(value)) return kvcal.dash;
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e7)) return minus(smallText(value, digits));
  if (Number.isInteger(value)) return minus(size >= 10000 ? kvcal.count(value) : String(value));
  const whole = size > 0 ? Math.floor(Math.log10(size)) + 1 : 1;
  return minus(value.toFixed(Math.min(12, Math.max(0, digits - whole))));
};

kvcal.signed = (value, digits = 3) =>
  (kvcal.isNumber(value) && value >= 0 ? '+' : '') + kvcal.number(value, digits);

kvcal.percent = (share, digits = 1) =>
  (kvcal.isNumber(share) ? kvcal.number(100 * share, digits) + '\u00a0%' : kvcal.dash);

kvcal.count = (value) =>
  (kvcal.isNumber(value) ? minus(String(Math.round(value)).replace(/\B(?=(\d{3})+$)/g, ',')) : kvcal.dash);

// 3.71 GiB and the like, as the program prints them: powers of 1024.
kvcal.bytes = (value, digits = 2) => {
  if (!kvcal.isNumber(value)) return kvcal.dash;
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];
  let scaled = value, unit = 0;
  while (Math.abs(scaled) >= 1024 && unit < units.length - 1) {
    scaled /= 1024;
    ++unit;
  }
  return minus(unit === 0 ? String(scaled) : scaled.toFixed(digits)) + '\u00a0' + units[unit];
};

// 131072 as 128K, as contexts are spoken of.
kvcal.tokens = (value) => {
  if (!kvcal.isNumber(value)) return kvcal.dash;
  if (value >= 1048576 && value % 1048576 === 0) return value / 1048576 + 'M';
  return value >= 1024 && value % 1024 === 0 ? value / 1024 + 'K' : kvcal.count(value);
};

function smallText(value, digits) {
  const [mantissa, power] = value.toExponential(digits - 1).split('e');
  return mantissa + 'e' + power.replace('+', '');
}

function minus(text) {
  return text.replace(/^-/, '\u2212');
}

// Elements --------------------------------------------------------------------------------------------------------------

// el('p', {class: 'x', onclick: f}, 'text', child, [more]); null children are left out.
kvcal.el = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === 'function') element[name] = value;
    else element.setAttribute(name, value === true ? '' : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) element.append(child);
  }
  return element;
};

// A text's options (--generate) as code that does not break; for el's children.
kvcal.marked = (text) => String(text).split(/((?<![\w-])--[a-z][\w-]*)/)
  .map((part, at) => (at % 2 === 1 ? kvcal.el('code', {class: 'option'}, part) : part));

// Plotly ----------------------------------------------------------------------------------------------------------------

// Resolves with Plotly, which the page carries compressed; rejects where the browser cannot inflate or run it.
kvcal.plotly = () => {
  if (!kvcal.plotlyLoading) kvcal.plotlyLoading = loadPlotly();
  return kvcal.plotlyLoading;
};

async function loadPlotly() {
  if (typeof DecompressionStream === 'undefined') throw new Error('this browser has no DecompressionStream');
  const packed = atob(document.getElementById('kvcal-plotly').textContent.trim());
  const bytes = new Uint8Array(packed.length);
  for (let i = 0; i < packed.length; ++i) bytes[i] = packed.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
  const script = document.createElement('script');
  script.textContent = await new Response(stream).text();
  document.head.append(script);
  if (!window.Plotly) throw new Error('plotly did not start');
  return window.Plotly;
}
// Theme -----------------------------------------------------------------------------------------------------------------

// Okabe and Ito's colours in their spirit, each at least 4 : 1 against the page (sky blue 3.5 : 1); compared light and dark.
kvcal.palettes = {
  light: ['#C24E00', '#0072B2', '#00805C', '#B4578C', '#A66F00', '#2E8FC7', '#7A7100', '#4D4D4D'],
  dark: ['#F07F3C', '#4C9BE0', '#1DB88A', '#DB8FBA', '#E6A117', '#8CCBF2', '#F0E442', '#C9CDD3'],
};

kvcal.darkQuery = window.matchMedia('(prefers-color-scheme: dark)');
kvcal.smallQuery = window.matchMedia('(max-width: 600px)');
kvcal.stillQuery = window.matchMedia('(prefers-reduced-motion: reduce)');

// What pictures are drawn with now. `key` and `value` are the colours of keys and values in all pictures.
kvcal.theme = () => {
  const dark = kvcal.darkQuery.matches && !kvcal.printing;
  const palette = dark ? kvcal.palettes.dark : kvcal.palettes.light;
  return {
    dark, palette,
    small: kvcal.smallQuery.matches,
    text: dark ? '#e8eaed' : '#1a1d21',
    muted: dark ? '#a4adb8' : '#5b6470',
    grid: dark ? '#343a43' : '#dde1e6',
    background: dark ? '#15181d' : '#ffffff',
    key: palette[1],
    value: palette[4],
    dashes: ['solid', 'dash', 'dot', 'dashdot', 'longdash', 'longdashdot'],
    symbols: ['circle', 'square', 'triangle-up', 'diamond', 'cross', 'x', 'pentagon', 'hexagram'],
    sequential: 'Cividis',
    of: (name) => styleOf(name, palette, dark ? '#e8eaed' : '#1a1d21'),
  };
};

// What is not quantised at all.
const exactNames = ['fp', 'fp16', 'bf16', 'fp32'];

// Families of methods with a fixed colour, so that reports of several models can be laid side by side.
const familyColours = {'nuq-1%': 0, 'nuq': 1, 'int': 7, 'nf': 6, 'kivi': 2, 'turbo': 3, 'fp': 4, 'q_0': 5};
const bitsStyles = {
  2: {symbol: 'triangle-up', dash: 'dot'},
  3: {symbol: 'square', dash: 'dash'},
  4: {symbol: 'circle', dash: 'solid'},
  8: {symbol: 'diamond', dash: 'dashdot'},
};
const spareSymbols = ['cross', 'x', 'pentagon', 'hexagram', 'star', 'bowtie', 'hourglass'];

// A method's colour is its family's (nuq3-1% and nuq4-1% are one), its marker and dash tell the bits. fp is text-coloured.
function styleOf(name, palette, text) {
  if (exactNames.includes(name)) return {color: text, symbol: 'star', dash: 'longdash'};
  const style = methodStyles()[name] || {colour: 7, symbol: 'circle', dash: 'solid'};
  return {color: palette[style.colour], symbol: style.symbol, dash: style.dash};
}

kvcal.familyOf = (name) => name.replace(/^([a-z]+)\d+/, '$1');
kvcal.bitsOf = (name) => Number((/^[a-z]+(\d+)/.exec(name) || [0, 0])[1]);

function methodStyles() {
  if (!kvcal.styles) kvcal.styles = makeStyles(kvcal.methodNames(kvcal.data()));
  return kvcal.styles;
}

function makeStyles(names) {
  const families = [...new Set(names.map(kvcal.familyOf))];
  const fixed = families.filter((family) => family in familyColours).map((family) => familyColours[family]);
  const free = kvcal.palettes.light.map((_, i) => i).filter((i) => !fixed.includes(i));
  const styles = {}, taken = new Set();
  let extra = 0;
  const colours = {};
  for (const family of families) {
    colours[family] = family in familyColours ? familyColours[family]
      : free.length > 0 ? free[extra++ % free.length] : extra++ % kvcal.palettes.light.length;
  }
  for (const name of names) {
    const colour = colours[kvcal.familyOf(name)];
    const {symbol, dash} = bitsStyles[kvcal.bitsOf(name)] || {symbol: spareSymbols[0], dash: 'longdash'};
    const choices = [symbol, symbol + '-open', ...spareSymbols, ...spareSymbols.map((one) => one + '-open')];
    const chosen = choices.find((one) => !taken.has(colour + one)) || symbol;
    taken.add(colour + chosen);
    styles[name] = {colour, symbol: chosen, dash: chosen === symbol ? dash : 'longdashdot'};
  }
  return styles;
}

// All methods that the page speaks of, exact ones left out, in the report's order.
kvcal.methodNames = (data) => {
  const names = [];
  if (kvcal.validation(data)) names.push(...data.report.methods.map((method) => method.name));
  if (data.codebook && data.codebook.summary) names.push(...(data.codebook.summary.methods || []).map((m) => m.name));
  for (const plan of data.plans || []) names.push(...plan.methods.map((method) => method.name));
  return [...new Set(names)].filter((name) => !exactNames.includes(name));
};
