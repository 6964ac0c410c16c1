// recipe.js: what kvcal allocate chose: divergence against bits by the best choices there are, and the bits of each layer.
kvcal.recipe = {
  of: (data) => (data.codebook && data.codebook.recipe) || null,

  // Methods that the file estimates, where the recipe's divergences are estimates, too.
  uniform(data) {
    const recipe = kvcal.recipe.of(data);
    if (recipe.source !== 'estimated') return [];
    return data.codebook.summary.methods.filter((one) => one.estimated_kld > 0 && kvcal.isNumber(one.bits_per_value));
  },

  drawCurve(data, theme) {
    const recipe = kvcal.recipe.of(data);
    const curve = recipe.curve.filter((point) => point.kl > 0);
    const uniform = kvcal.recipe.uniform(data);
    const hover = '%{x:.2f} bits a value<br>KL %{y:.3g}<extra></extra>';
    return {
      traces: [
        {name: 'best choices', type: 'scatter', mode: 'lines', line: {color: theme.key, width: 2},
          x: curve.map((point) => point.bits_per_value), y: curve.map((point) => point.kl), hovertemplate: hover},
        {name: 'every tensor alike', type: 'scatter', mode: 'markers', marker: {color: theme.muted, symbol: 'circle-open', size: 10},
          x: uniform.map((one) => one.bits_per_value), y: uniform.map((one) => one.estimated_kld),
          text: uniform.map((one) => one.name), hovertemplate: '<b>%{text}</b><br>' + hover},
        {name: 'recipe', type: 'scatter', mode: 'markers', marker: {color: theme.value, symbol: 'star', size: 15},
          x: [recipe.bits_per_value], y: [recipe.kl], hovertemplate: '<b>recipe</b><br>' + hover},
      ],
      layout: {
        height: theme.small ? 380 : 420, showlegend: true, legend: {orientation: 'h', x: 0, y: -0.2, yanchor: 'top'},
        margin: {l: 60, r: 12, t: 20, b: 90}, xaxis: {title: {text: 'bits a value'}},
        yaxis: {title: {text: 'KL foretold (nats a token)'}, type: 'log', exponentformat: 'power'},
      },
      summary: kvcal.recipe.curveWords(recipe, uniform),
      table: {head: ['bits a value', 'KL foretold (nats a token)'], rows: recipe.curve.map((point) => [point.bits_per_value, point.kl])},
    };
  },

  curveWords(recipe, uniform) {
    const near = uniform.filter((one) => one.bits_per_value >= recipe.bits_per_value - 0.1)
      .sort((a, b) => a.bits_per_value - b.bits_per_value)[0];
    const text = `The recipe takes ${kvcal.number(recipe.bits_per_value, 2)} bits a value and is `
      + `${recipe.source === 'measured' ? 'measured, tensor by tensor,' : 'estimated'} to cost ${kvcal.short(recipe.kl)} nats a token.`;
    return near ? `${text} ${near.name} everywhere, with ${kvcal.number(near.bits_per_value, 2)}, `
      + `is estimated at ${kvcal.short(near.estimated_kld)}.` : text;
  },

  drawLayers(data, theme) {
    const recipe = kvcal.recipe.of(data);
    const names = [...new Set(recipe.tensors.map((one) => one.tensor))];
    const colours = {key: theme.key, value: theme.value};
    const title = (one) => `${one.bits === 16 ? 'as it is' : `${one.bits} bits`}${one.outliers > 0 ? `, ${kvcal.percent(one.outliers, 1)} outliers` : ''}`;
    return {
      traces: names.map((name, i) => {
        const own = recipe.tensors.filter((one) => one.tensor === name);
        return {
          type: 'bar', name: kvcal.channels.title(name), x: own.map((one) => one.layer), y: own.map((one) => one.bits),
          text: own.map((one) => (one.outliers > 0 ? '+' : '')), textposition: 'outside', cliponaxis: false,
          customdata: own.map((one) => [title(one), one.kl]),
          marker: {color: colours[name] || theme.palette[i % theme.palette.length],
            pattern: {shape: ['', '/', 'x', '.'][i % 4], fillmode: 'overlay', fgcolor: theme.background, size: 7, solidity: 0.2}},
          hovertemplate: `layer %{x}, ${kvcal.channels.title(name)}<br>%{customdata[0]}<br>KL %{customdata[1]:.3g}<extra></extra>`,
        };
      }),
      layout: {
        height: theme.small ? 340 : 360, barmode: 'group', bargap: 0.2, showlegend: true,
        legend: {orientation: 'h', x: 0, y: -0.2, yanchor: 'top'}, margin: {l: 50, r: 12, t: 20, b: 80},
        xaxis: {title: {text: 'layer'}, zeroline: false}, yaxis: {title: {text: 'bits of the datatype'}, rangemode: 'tozero'},
      },
      summary: kvcal.recipe.layerWords(recipe, names),
      table: {head: ['layer', 'tensor', 'bits', 'outliers', 'KL foretold (nats a token)'],
        rows: recipe.tensors.map((one) => [one.layer, one.tensor, one.bits, one.outliers, one.kl])},
    };
  },

  layerWords(recipe, names) {
    const parts = names.map((name) => {
      const own = recipe.tensors.filter((one) => one.tensor === name);
      const mean = own.reduce((sum, one) => sum + one.bits, 0) / own.length;
      const apart = own.filter((one) => one.outliers > 0).length;
      return `${kvcal.channels.title(name)} ${kvcal.number(mean, 2)} bits on average, in ${apart} of ${own.length} layers with outliers apart`;
    });
    return `By layer: ${parts.join('; ')}.`;
  },
};

kvcal.pictures.push({
  id: 'recipe-curve', section: 'layers', order: 30, title: 'Bits where they count',
  about: 'What kvcal allocate found: each point of the line is the choice of bits and outliers, tensor by tensor, that costs the '
    + 'least divergence of all choices of its size. Circles give every tensor the same datatype; the star is the recipe that '
    + 'the codebook holds. How far circles lie above the line is what choosing by tensor is worth.',
  wanted: (data) => kvcal.recipe.of(data) !== null,
  draw: (data, choice, theme) => kvcal.recipe.drawCurve(data, theme),
});

kvcal.pictures.push({
  id: 'recipe-layers', section: 'layers', order: 31, title: 'What each layer got',
  about: 'The bits of the datatype that each layer\u2019s keys and values are stored by under the recipe; a plus marks those '
    + 'that keep outliers apart, 16 bits those that stay as they are.',
  wanted: (data) => kvcal.recipe.of(data) !== null,
  draw: (data, choice, theme) => kvcal.recipe.drawLayers(data, theme),
});
