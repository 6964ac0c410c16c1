// estimated-cost.js: what each layer's keys and values are estimated to cost with a method.
kvcal.estimatedCost = {
  methods(data) {
    const summary = data.codebook && data.codebook.summary;
    return ((summary && summary.methods) || []).filter((method) => (method.layers || []).length);
  },

  // A method's tensors: {layer, name, cost}, in the order of layers.
  tensors(method) {
    return method.layers.flatMap((entry) => Object.keys(entry)
      .filter((name) => name !== 'layer' && kvcal.isNumber(entry[name]))
      .map((name) => ({layer: entry.layer, name, cost: entry[name]})));
  },

  names(tensors) {
    const names = new Set(tensors.map((tensor) => tensor.name));
    const others = [...names].filter((name) => name !== 'key' && name !== 'value').sort();
    return ['key', 'value'].filter((name) => names.has(name)).concat(others);
  },

  traces(method, tensors, theme) {
    const colours = {key: theme.key, value: theme.value};
    return kvcal.estimatedCost.names(tensors).map((name, i) => {
      const own = tensors.filter((tensor) => tensor.name === name);
      return {
        type: 'bar', name: kvcal.channels.title(name),
        x: own.map((tensor) => tensor.layer), y: own.map((tensor) => tensor.cost),
        customdata: own.map((tensor) => (method.estimated_kld > 0 ? tensor.cost / method.estimated_kld : 0)),
        marker: {color: colours[name] || theme.palette[i % theme.palette.length], pattern: {
          shape: ['', '/', 'x', '.'][i % 4], fillmode: 'overlay', fgcolor: theme.background, size: 7, solidity: 0.2,
        }},
        hovertemplate: `layer %{x}, ${kvcal.channels.title(name)}<br>%{y:.3g} nats a token, %{customdata:.1%} of all`
          + '<extra></extra>',
      };
    });
  },

  layout(tensors, theme) {
    const narrow = theme.small;
    const layers = new Set(tensors.map((tensor) => tensor.layer));
    return {
      height: narrow ? 340 : 380, barmode: 'stack', bargap: 0.15, hovermode: 'closest', showlegend: true,
      legend: {orientation: 'h', traceorder: 'normal', x: 0, y: narrow ? -0.25 : -0.2, yanchor: 'top'},
      margin: {l: 60, r: 12, t: 20, b: narrow ? 100 : 80},
      xaxis: {title: {text: 'layer'}, zeroline: false, ...(layers.size <= 10 ? {tickmode: 'array', tickvals: [...layers]} : {})},
      yaxis: {title: {text: 'estimated KL (nats a token)'}, rangemode: 'tozero', exponentformat: 'e'},
    };
  },

  summary(method, tensors) {
    const total = method.estimated_kld;
    const worst = [...tensors].sort((a, b) => b.cost - a.cost).slice(0, 3);
    const list = worst.map((one) => `layer ${one.layer} ${kvcal.channels.title(one.name)}`
      + (total > 0 ? ` (${kvcal.percent(one.cost / total)})` : ''));
    const words = list.length > 1 ? `${list.slice(0, -1).join(', ')} and ${list[list.length - 1]}` : list[0];
    const together = worst.reduce((sum, one) => sum + one.cost, 0);
    const share = total > 0 && worst.length > 1 ? `: together ${kvcal.percent(together / total)} of it` : '';
    return `${method.name}, ${kvcal.short(method.bits_per_value)} bits a value, is estimated to cost `
      + `${kvcal.short(total)} nats a token. `
      + `Most comes from ${words}${share}.`;
  },

  table(method, tensors) {
    const total = method.estimated_kld;
    return {
      head: ['layer', 'tensor', 'estimated KL (nats a token)', 'share of all'],
      rows: tensors.map((one) => [one.layer, one.name, one.cost, total > 0 ? one.cost / total : null]),
    };
  },

  draw(data, choice, theme) {
    const methods = kvcal.estimatedCost.methods(data);
    const method = methods.find((one) => one.name === choice.method) || methods[0];
    const tensors = kvcal.estimatedCost.tensors(method);
    return {
      traces: kvcal.estimatedCost.traces(method, tensors, theme), layout: kvcal.estimatedCost.layout(tensors, theme),
      summary: kvcal.estimatedCost.summary(method, tensors), table: kvcal.estimatedCost.table(method, tensors),
    };
  },
};

kvcal.pictures.push({
  id: 'estimated-cost', section: 'layers', title: 'Estimated cost of each layer',
  about: 'What storing each layer\u2019s keys and values is estimated to add to the KL divergence from the exact model, by the '
    + 'error that the datatype leaves under the Fisher information. The parts add up to the method\u2019s estimate. '
    + 'Where a layer stands out, more bits or a larger outlier fraction for it alone buys most. '
    + 'It is an estimate to second order, not a measurement: kvcal validate with --per-layer-kl measures.',
  missing(data) {
    if (!data.codebook) return kvcal.channels.NO_CODEBOOK;
    return kvcal.estimatedCost.methods(data).length ? null
      : 'The codebook gives no estimate for its layers. One needs sensitivities: calibrate with --sensitivity fisher '
        + '(the default).';
  },
  controls(data) {
    const methods = kvcal.estimatedCost.methods(data);
    const options = methods.map(({name}) => ({value: name, text: name}));
    return [{name: 'method', label: 'Method', options, initial: methods[0].name}];
  },
  draw: (data, choice, theme) => kvcal.estimatedCost.draw(data, choice, theme),
});
