// passkey.js: how many hidden numbers each method still finds, by the prompt's length.

kvcal.pictures.push({
  id: 'passkey',
  section: 'decoding',
  order: 20,
  title: 'Passkeys found again',
  about: 'A five-digit number is hidden in a text about something else, at several places, and asked for at the end. A ' +
    'prompt counts ' +
    'where every token of the answer is the likeliest one. If fp itself finds none, the model is too small for this test; ' +
    'then ' +
    'read Attention % in the table above.',
  wanted: (data) => kvcal.validation(data) !== null,
  missing: (data) => (passkeyMethods(data.report).length > 0 ? null
    : 'Not measured in this run. kvcal validate --passkey 1024,4096 asks for it at these lengths of the prompt.'),
  draw: (data, choice, theme) => drawPasskey(passkeyMethods(data.report), theme),
});

function passkeyMethods(report) {
  return report.methods.filter((method) => method.passkey && method.passkey.length > 0);
}

function drawPasskey(methods, theme) {
  const lengths = methods[0].passkey.map((one) => one.length);
  const share = (one) => (one.prompts > 0 ? one.retrieved / one.prompts : null);
  // One row for each method, the first at the top; the number stands in its field.
  return {
    traces: [{
      type: 'heatmap', x: lengths.map((length) => kvcal.count(length)), y: methods.map((method) => method.name),
      z: methods.map((method) => method.passkey.map((one) => (share(one) === null ? null : 100 * share(one)))),
      text: methods.map((method) => method.passkey.map((one) => `${one.retrieved}/${one.prompts}`)), texttemplate: '%{text}',
      colorscale: theme.sequential, zmin: 0, zmax: 100, xgap: 2, ygap: 2,
      colorbar: {title: {text: 'found, %', side: 'right'}, thickness: 12},
      hovertemplate: '%{y}, %{x} tokens: %{text}<extra></extra>', showscale: !theme.small,
    }],
    layout: {
      height: 110 + 34 * methods.length,
      xaxis: {title: 'Prompt, tokens', type: 'category', showgrid: false},
      yaxis: {type: 'category', autorange: 'reversed', showgrid: false},
    },
    summary: passkeySummary(methods),
    table: {
      head: ['Method', ...lengths.map((length) => `${kvcal.count(length)} tokens`)],
      rows: methods.map((method) => [method.name, ...method.passkey.map((one) => `${one.retrieved}/${one.prompts}`)]),
    },
  };
}

function passkeySummary(methods) {
  const lost = methods.filter((method) => method.passkey.some((one) => one.retrieved < one.prompts));
  const fp = methods.find((method) => method.name === 'fp');
  if (fp && fp.passkey.every((one) => one.retrieved === 0)) return 'fp itself finds none, so this says nothing about the ' +
    'methods.';
  if (lost.length === 0) return 'Every method finds every number.';
  const told = lost.map((method) => {
    const found = method.passkey.reduce((sum, one) => sum + one.retrieved, 0);
    return `${method.name} ${found} of ${method.passkey.reduce((sum, one) => sum + one.prompts, 0)}`;
  });
  return `${methods.length - lost.length} of ${methods.length} find every number; the others miss some: ${told.join(', ')}.`;
}
