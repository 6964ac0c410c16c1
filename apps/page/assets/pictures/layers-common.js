// layers-common.js: what the pictures by layer share.

// Methods of a report that have tensors, for a control; the headline's method first chosen.
kvcal.layerMethods = (data, has) => {
  const report = kvcal.validation(data);
  const methods = report ? report.methods.filter((method) => tensorsOf(method).some((one) => has(one.data))) : [];
  return methods;
};

kvcal.methodControl = (data, methods) => {
  const best = kvcal.headline(data.report).method;
  const initial = best && methods.some((method) => method.name === best.name) ? best.name : (methods[0] || {}).name;
  return {name: 'method', label: 'Method', initial, options: methods.map((one) => ({value: one.name, text: one.name}))};
};

// Names of the tensors of a method, keys before values.
kvcal.tensorNames = (method) => [...new Set(tensorsOf(method).map((one) => one.tensor))].sort();

// "Keys" for "key"; models with another cache name their tensors otherwise.
kvcal.tensorTitle = (name) => ({key: 'Keys', value: 'Values'}[name] || name);

kvcal.tensorStyle = (name, at, theme) => ({
  color: name === 'key' ? theme.key : name === 'value' ? theme.value : theme.palette[at % theme.palette.length],
  symbol: theme.symbols[at % theme.symbols.length],
  dash: theme.dashes[at % theme.dashes.length],
});

// A line with marks over layers, one for each tensor: read(data) gives a number, error(data) its standard error.
kvcal.layerTraces = (method, theme, read, error) => kvcal.tensorNames(method).map((name, at) => {
  const entries = tensorsOf(method).filter((one) => one.tensor === name && kvcal.isNumber(read(one.data)));
  const style = kvcal.tensorStyle(name, at, theme);
  const errors = error ? entries.map((one) => error(one.data)) : [];
  return {
    name: kvcal.tensorTitle(name), type: 'scatter', mode: 'lines+markers',
    x: entries.map((one) => one.layer), y: entries.map((one) => read(one.data)),
    line: {color: style.color, dash: style.dash, width: 2}, marker: {color: style.color, symbol: style.symbol, size: 8},
    error_y: errors.some(kvcal.isNumber) ? {type: 'data', array: errors, color: style.color, thickness: 1.2,
      width: 3} : undefined,
    hovertemplate: `${kvcal.tensorTitle(name)}, layer %{x}<br>%{y:.3g}<extra></extra>`,
  };
});

kvcal.layerAxis = (method, theme) => {
  const layers = (method.layers || []).length;
  return {title: 'Layer', ...(layers <= (theme.small ? 8 : 24) ? {dtick: 1} : {}), showgrid: false};
};

// The largest of a method's tensors by read(data): {layer, tensor, data, value}, or null.
kvcal.largestTensor = (method, read) => {
  const all = tensorsOf(method).map((one) => ({...one, value: read(one.data)})).filter((one) => kvcal.isNumber(one.value));
  return all.sort((a, b) => b.value - a.value)[0] || null;
};
