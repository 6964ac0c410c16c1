// key-ranges.js: every key channel's range in every layer, before and after RoPE.
kvcal.keyRanges = {
  WIDE: 3,  // a channel is wide where its range exceeds this many medians of its layer

  controls(data) {
    return [kvcal.channels.fractionControl(kvcal.channels.withKeyRanges(data)), {
      name: 'unit', label: 'Unit', initial: 'absolute', options: [
        {value: 'absolute', text: 'absolute'}, {value: 'relative', text: 'relative to the layer\u2019s median channel'},
      ],
    }];
  },

  // Ranges of each layer: {layer, heads, before, after}; before and after are null where the file has none.
  collect(data, fraction) {
    return kvcal.channels.withKeyRanges(data).map((layer) => ({
      layer: layer.layer, heads: kvcal.channels.heads(layer),
      stored: (layer.key.rope || []).length > 0, turns: layer.rope !== null,
      before: kvcal.channels.widths(kvcal.channels.set(layer.key.outliers, fraction)),
      after: kvcal.channels.widths(kvcal.channels.set(layer.key.rope, fraction)),
    }));
  },

  // Columns of the map: heads side by side, each as wide as the widest head of any layer.
  grid(rows, perColumn) {
    let heads = 0;
    let columns = 0;
    for (const row of rows) {
      const widths = row.before || row.after;
      if (!widths) continue;
      heads = Math.max(heads, row.heads);
      columns = Math.max(columns, Math.ceil(widths.length / row.heads));
    }
    const names = [];
    for (let i = 0; i < heads * columns; i++) {
      const word = perColumn === 1 ? 'channel' : 'channels';
      names.push(`head ${Math.floor(i / columns)}, ${word} ${kvcal.channels.columnText(i % columns, perColumn)}`);
    }
    return {heads, columns, names};
  },

  // One layer's row of the map: null where it has no such channel, or a range of zero, which no logarithm shows.
  line(widths, heads, grid, unit) {
    const shown = new Array(grid.heads * grid.columns).fill(null);
    if (!widths) return shown;
    const scale = unit === 'relative' ? 1 / kvcal.channels.median(widths) : 1;
    const columns = Math.ceil(widths.length / heads);
    for (let i = 0; i < widths.length; i++) {
      const value = widths[i] * scale;
      if (value > 0 && Number.isFinite(value)) shown[Math.floor(i / columns) * grid.columns + i % columns] = value;
    }
    return shown;
  },

  // A colour bar that changes from upright to flat leaves its old ticks behind (plotly.js 4.1), so each has an axis of its own.
  colourAxis: (theme) => (theme.small ? 'coloraxis2' : 'coloraxis'),

  trace(rows, which, grid, unit, axis, theme) {
    const values = rows.map((row) => kvcal.keyRanges.line(row[which], row.heads, grid, unit));
    const of = unit === 'relative' ? ' x median' : '';
    return {
      type: 'heatmap', x: grid.names, y: rows.map((row) => `layer ${row.layer}`), customdata: values,
      z: values.map((line) => line.map((value) => (value === null ? null : Math.log10(value)))),
      coloraxis: kvcal.keyRanges.colourAxis(theme), xaxis: 'x', yaxis: axis, hoverongaps: false,
      hovertemplate: `%{y}, %{x}<br>range ${which} RoPE: %{customdata:.3g}${of}<extra></extra>`,
    };
  },

  // Least and greatest of all that is shown, so that both maps have one scale; an array of many is no argument list.
  limits(traces) {
    let least = Infinity;
    let greatest = -Infinity;
    for (const trace of traces) {
      for (const line of trace.z) {
        for (const value of line) {
          if (value === null) continue;
          if (value < least) least = value;
          if (value > greatest) greatest = value;
        }
      }
    }
    if (least > greatest) return [0, 1];
    return least === greatest ? [least - 0.5, greatest + 0.5] : [least, greatest];
  },

  // Ticks of the colour bar: 1, 2, 5 of each power of ten, or powers alone where the scale is long.
  colourTicks([least, greatest]) {
    const steps = greatest - least > 2.5 ? [1] : [1, 2, 5];
    const ticks = [];
    for (let power = Math.floor(least); power <= Math.ceil(greatest); power++) {
      for (const step of steps) ticks.push(step * 10 ** power);
    }
    const inside = ticks.filter((tick) => Math.log10(tick) >= least - 1e-9 && Math.log10(tick) <= greatest + 1e-9);
    return {tickvals: inside.map(Math.log10), ticktext: inside.map((tick) => kvcal.short(tick))};
  },

  layout(traces, grid, unit, theme, rows) {
    const narrow = theme.small;
    const limits = kvcal.keyRanges.limits(traces);
    const two = traces.length > 1;
    const step = Math.max(1, Math.ceil(grid.heads / (narrow ? 4 : 16)));
    const heads = Array.from({length: Math.ceil(grid.heads / step)}, (_, i) => i * step);
    const vertical = {type: 'category', autorange: 'reversed', tickmode: 'array', ...kvcal.keyRanges.layerTicks(rows, narrow)};
    const bar = narrow ? {orientation: 'h', y: -0.12, yanchor: 'top', thickness: 12}
      : {orientation: 'v', x: 1.01, thickness: 14};
    return {
      height: (two ? 2 : 1) * Math.min(300, Math.max(150, 14 * rows.length)) + (narrow ? 190 : 110),
      margin: {l: 40, r: narrow ? 12 : 20, t: 30, b: narrow ? 110 : 50}, hovermode: 'closest',
      xaxis: {
        type: 'category', anchor: two ? 'y2' : 'y', showgrid: false, tickmode: 'array', tickangle: 0,
        tickvals: heads.map((head) => head * grid.columns), ticktext: heads.map((head) => String(head)), ticks: 'outside',
        title: {text: 'channels, by kv head'},
      },
      yaxis: {...vertical, domain: two ? [0.54, 1] : [0, 1]},
      ...(two ? {yaxis2: {...vertical, domain: [0, 0.46]}} : {}),
      [kvcal.keyRanges.colourAxis(theme)]: {
        colorscale: theme.sequential, cmin: limits[0], cmax: limits[1],
        colorbar: {
          ...bar, outlinewidth: 0, ...kvcal.keyRanges.colourTicks(limits),
          title: {text: unit === 'relative' ? 'range / median' : 'range', side: narrow ? 'top' : 'right'},
        },
      },
      shapes: kvcal.keyRanges.borders(grid, theme),
      annotations: traces.map((trace, i) => ({
        text: i === 0 ? 'before RoPE' : 'after RoPE', showarrow: false, xref: 'paper', x: 0, xanchor: 'left', yref: 'paper',
        y: i === 0 ? 1 : 0.46, yanchor: 'bottom',
      })),
    };
  },

  // A line between each two heads.
  borders(grid, theme) {
    return Array.from({length: grid.heads - 1}, (_, i) => {
      const x = (i + 1) * grid.columns - 0.5;
      return {type: 'line', xref: 'x', yref: 'paper', x0: x, x1: x, y0: 0, y1: 1, line: {color: theme.background, width: 1}};
    });
  },

  layerTicks(rows, narrow) {
    const step = Math.max(1, Math.ceil(rows.length / (narrow ? 6 : 10)));
    const shown = rows.filter((_, i) => i % step === 0);
    return {
      tickvals: shown.map((row) => `layer ${row.layer}`), ticktext: shown.map((row) => String(row.layer)),
      title: {text: 'layer'},
    };
  },

  // Of one layer: median, widest, widest over median and how many exceed WIDE medians.
  figures(widths) {
    if (!widths) return {median: null, widest: null, ratio: null, wide: null};
    const median = kvcal.channels.median(widths);
    const widest = widths.reduce((a, b) => Math.max(a, b), 0);
    const wide = widths.reduce((count, width) => count + (width > kvcal.keyRanges.WIDE * median ? 1 : 0), 0);
    return {median, widest, ratio: median > 0 ? widest / median : null, wide};
  },

  table(rows) {
    const figures = rows.map((row) => [kvcal.keyRanges.figures(row.before), kvcal.keyRanges.figures(row.after)]);
    const names = (when) => [`median range ${when}`, `widest ${when}`, `widest / median ${when}`, `above 3 medians ${when}`];
    return {
      head: ['layer', 'channels', ...names('before'), ...names('after')],
      rows: rows.map((row, i) => [row.layer, (row.before || row.after || []).length,
        ...figures[i].flatMap((one) => [one.median, one.widest, one.ratio, one.wide])]),
    };
  },

  summary(rows, perColumn) {
    const noun = perColumn === 1 ? 'channels' : `columns of ${perColumn} channels`;
    const part = (which) => {
      const figures = rows.filter((row) => row[which]).map((row) => kvcal.keyRanges.figures(row[which]));
      const wide = figures.reduce((sum, one) => sum + one.wide, 0);
      const total = rows.reduce((sum, row) => sum + (row[which] ? row[which].length : 0), 0);
      const ratio = kvcal.channels.median(figures.map((one) => one.ratio).filter((value) => value !== null));
      return `${kvcal.short(ratio)} times as wide as its median one, and ${wide} of ${total} ${noun} exceed 3 medians`;
    };
    const before = `Before RoPE the widest channel of a layer (median over layers) is ${part('before')}.`;
    const both = rows.filter((row) => row.before && row.after);
    if (!both.length) return `${before} There are no ranges after RoPE here: ${kvcal.keyRanges.why(rows)}`;
    return `${before} After RoPE it is ${part('after')}; ${kvcal.keyRanges.growth(both)}`;
  },

  // By how much RoPE widens a channel: the median of the ratio over all channels.
  growth(both) {
    const ratios = [];
    for (const row of both) {
      for (let i = 0; i < row.before.length; i++) if (row.before[i] > 0) ratios.push(row.after[i] / row.before[i]);
    }
    return `a channel\u2019s range is then ${kvcal.short(kvcal.channels.median(ratios))} times what it was before (median).`;
  },

  why(rows) {
    if (rows.some((row) => row.stored)) return 'the file holds them for other outlier fractions.';
    if (!rows.some((row) => row.turns)) return 'the model has no rotary embedding, or an older version of kvcal made the file.';
    return `the file holds none. ${kvcal.channels.OLD_FILE}`;
  },

  draw(data, choice, theme) {
    const rows = kvcal.keyRanges.collect(data, choice.fraction);
    const perColumn = kvcal.channels.perColumn(data);
    const grid = kvcal.keyRanges.grid(rows, perColumn);
    const traces = [kvcal.keyRanges.trace(rows, 'before', grid, choice.unit, 'y', theme)];
    if (rows.some((row) => row.after)) traces.push(kvcal.keyRanges.trace(rows, 'after', grid, choice.unit, 'y2', theme));
    return {
      traces, layout: kvcal.keyRanges.layout(traces, grid, choice.unit, theme, rows),
      summary: kvcal.keyRanges.summary(rows, perColumn), table: kvcal.keyRanges.table(rows),
    };
  },
};

kvcal.pictures.push({
  id: 'key-ranges', section: 'keys', title: 'Key ranges before and after RoPE',
  about: 'How wide a range each key channel needs: upper minus lower threshold, one row for each layer, on one colour scale. '
    + 'Before RoPE a few channels are wide, and they stay wide for every token, so one stored range for each channel fits. '
    + 'RoPE turns channel c and channel c + dim / 2 of a head into each other by an angle that depends on the position: '
    + 'after it both are wide, and quiet channels share the coarse steps of loud ones. That is why keys are quantised '
    + 'before RoPE, by channel. Ranges after RoPE count the sink tokens, those before do not.',
  missing(data) {
    if (!data.codebook) return kvcal.channels.NO_CODEBOOK;
    return kvcal.channels.withKeyRanges(data).length ? null
      : 'No layer of this model stores a range for each key channel, so there is nothing to draw.';
  },
  controls: (data) => kvcal.keyRanges.controls(data),
  draw: (data, choice, theme) => kvcal.keyRanges.draw(data, choice, theme),
});
