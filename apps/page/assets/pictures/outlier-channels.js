// outlier-channels.js: each key channel's thresholds in one layer, before and after RoPE, the unusual ones picked out.
kvcal.outlierChannels = {
  WIDE: 3,  // as in key-ranges.js

  // The channels of a layer as they are drawn: their sizes, names, and which are unusual and why.
  collect(data, choice) {
    const layer = kvcal.channels.layer(kvcal.channels.withKeyRanges(data), choice.layer);
    const set = kvcal.channels.set(layer.key.outliers, choice.fraction);
    if (!set || !set.lower) return null;
    const found = {
      layer, lower: kvcal.array(set.lower), upper: kvcal.array(set.upper), widths: kvcal.channels.widths(set),
      after: kvcal.channels.set(layer.key.rope, set.fraction), fisher: kvcal.array(layer.key.fisher_channel),
      perColumn: kvcal.channels.perColumn(data),
    };
    found.median = kvcal.channels.median(found.widths);
    found.perHead = Math.ceil(found.widths.length / kvcal.channels.heads(layer));
    found.fisherSum = found.fisher ? found.fisher.reduce((sum, value) => sum + value, 0) : 0;
    found.unusual = kvcal.outlierChannels.unusual(found);
    return found;
  },

  // Channels wider than WIDE medians, and those whose centre is farther off zero than half their width; widest first.
  unusual({lower, upper, widths, median}) {
    const list = [];
    for (let i = 0; i < widths.length; i++) {
      const wide = widths[i] > kvcal.outlierChannels.WIDE * median;
      const off = lower[i] > 0 || upper[i] < 0;
      if (wide || off) list.push({i, wide, off});
    }
    return list.sort((a, b) => widths[b.i] - widths[a.i]);
  },

  name(found, i) {
    const word = found.perColumn === 1 ? 'channel' : 'channels';
    const column = kvcal.channels.columnText(i % found.perHead, found.perColumn);
    return `head ${Math.floor(i / found.perHead)}, ${word} ${column}`;
  },

  // Two step lines with the space between them filled. Only the upper one has a hover text, and only the pair a legend.
  band(lower, upper, found, when, colour, opacity) {
    const x = Array.from(upper, (_, i) => i);
    const line = {shape: 'hvh', width: 1, color: kvcal.outlierChannels.fade(colour, Math.min(1, opacity * 1.6))};
    const shared = {type: 'scatter', mode: 'lines', x, line, legendgroup: when};
    return [
      {...shared, y: Array.from(lower), showlegend: false, hoverinfo: 'skip'},
      {
        ...shared, y: Array.from(upper), name: `${when} RoPE`, fill: 'tonexty',
        fillcolor: kvcal.outlierChannels.fade(colour, opacity),
        text: x.map((i) => `${kvcal.outlierChannels.name(found, i)}<br>${when} RoPE: `
          + `${kvcal.short(lower[i])} to ${kvcal.short(upper[i])}`),
        hovertemplate: '%{text}<extra></extra>',
      },
    ];
  },

  // #rrggbb with an opacity.
  fade(colour, opacity) {
    const parts = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
    return parts.some(Number.isNaN) ? colour : `rgba(${parts.join(',')},${opacity})`;
  },

  marked(found, list, name, colour) {
    const {lower, widths, median} = found;
    return {
      type: 'bar', name, width: 1, zorder: 1,
      x: list.map(({i}) => i), base: list.map(({i}) => lower[i]), y: list.map(({i}) => widths[i]),
      marker: {color: colour, line: {color: colour, width: 1}},
      text: list.map(({i}) => `${kvcal.outlierChannels.name(found, i)}: ${kvcal.short(widths[i] / median)} x the median width`),
      textposition: 'none', hovertemplate: '%{text}<extra></extra>',
    };
  },

  traces(found, theme) {
    const [before, wide, off] = kvcal.outlierChannels.colours(theme);
    const traces = [];
    if (found.after) {
      const muted = kvcal.outlierChannels.band(kvcal.array(found.after.lower), kvcal.array(found.after.upper), found, 'after',
        theme.muted, 0.3);
      traces.push(...muted);
    }
    traces.push(...kvcal.outlierChannels.band(found.lower, found.upper, found, 'before', before, 0.6));
    const wideOnes = found.unusual.filter((one) => one.wide);
    const offOnes = found.unusual.filter((one) => one.off && !one.wide);
    if (wideOnes.length) traces.push(kvcal.outlierChannels.marked(found, wideOnes, 'wider than 3 medians', wide));
    if (offOnes.length) traces.push(kvcal.outlierChannels.marked(found, offOnes, 'does not reach zero', off));
    return traces;
  },

  // Of the band before RoPE, of wide channels, and of those off zero.
  colours: (theme) => [theme.key, theme.palette[0], theme.palette[2]],

  layout(found, theme) {
    const narrow = theme.small;
    const heads = kvcal.channels.heads(found.layer);
    const step = Math.max(1, Math.ceil(heads / (narrow ? 4 : 16)));
    const shown = Array.from({length: Math.ceil(heads / step)}, (_, i) => i * step);
    return {
      height: narrow ? 380 : 420, barmode: 'overlay', hovermode: 'closest', showlegend: true,
      legend: {orientation: 'h', x: 0, y: narrow ? -0.25 : -0.18, yanchor: 'top'},
      margin: {l: 50, r: 12, t: 20, b: narrow ? 120 : 90},
      xaxis: {
        title: {text: 'channels, by kv head'}, showgrid: true, zeroline: false, ticks: 'outside',
        tickmode: 'array', tickvals: shown.map((head) => head * found.perHead - 0.5), ticktext: shown.map(String),
        range: [-0.5, found.widths.length - 0.5],
      },
      yaxis: {title: {text: 'key element'}, zeroline: true},
    };
  },

  share(found, i) {
    return found.fisherSum > 0 ? found.fisher[i] / found.fisherSum : null;
  },

  table(found) {
    const rows = found.unusual.map(({i, wide, off}) => {
      const column = i % found.perHead;
      const channel = found.perColumn === 1 ? column : kvcal.channels.columnText(column, found.perColumn);
      const why = wide && off ? 'wide, does not reach zero' : wide ? 'wide' : 'does not reach zero';
      return [Math.floor(i / found.perHead), channel, found.lower[i], found.upper[i],
        found.median > 0 ? found.widths[i] / found.median : null, kvcal.outlierChannels.share(found, i), why];
    });
    return {head: ['head', 'channel in head', 'lower', 'upper', 'width / median', 'share of Fisher information', 'why'], rows};
  },

  summary(found) {
    const {unusual, widths, layer} = found;
    const noun = found.perColumn === 1 ? 'channels' : `columns of ${found.perColumn} channels`;
    const start = `Layer ${layer.layer}: `;
    const rope = found.after ? '' : ` ${kvcal.outlierChannels.why(layer)}`;
    if (!unusual.length) {
      return `${start}none of ${widths.length} ${noun} is wider than 3 medians, and every range holds zero.${rope}`;
    }
    const wide = unusual.filter((one) => one.wide).length;
    const off = unusual.filter((one) => one.off).length;
    const share = unusual.reduce((sum, {i}) => sum + (kvcal.outlierChannels.share(found, i) || 0), 0);
    const first = unusual[0].i;
    return `${start}of ${widths.length} ${noun}, ${wide} are wider than 3 medians and ${off} have a range that does not `
      + 'reach zero; '
      + `together they hold ${kvcal.percent(share)} of the layer\u2019s Fisher information. The widest of them, `
      + `${kvcal.outlierChannels.name(found, first)}, is ${kvcal.short(widths[first] / found.median)} times the median.${rope}`;
  },

  why(layer) {
    if ((layer.key.rope || []).length) return 'The file has ranges after RoPE for other outlier fractions only.';
    if (layer.rope === null) return 'This layer has no rotary embedding, so there are no ranges after it.';
    return `The file has no ranges after RoPE. ${kvcal.channels.OLD_FILE}`;
  },

  draw(data, choice, theme) {
    const found = kvcal.outlierChannels.collect(data, choice);
    if (!found) {
      return {
        traces: [], layout: {height: 120, xaxis: {visible: false}, yaxis: {visible: false}},
        summary: `Layer ${choice.layer} has no ranges for this outlier fraction.`, table: {head: ['head'], rows: []},
      };
    }
    return {
      traces: kvcal.outlierChannels.traces(found, theme), layout: kvcal.outlierChannels.layout(found, theme),
      summary: kvcal.outlierChannels.summary(found), table: kvcal.outlierChannels.table(found),
    };
  },
};

kvcal.pictures.push({
  id: 'outlier-channels', section: 'keys', title: 'Channels that stand out in one layer',
  about: 'The range between each key channel\u2019s thresholds in one layer, channel by channel: before RoPE in colour, after '
    + 'RoPE in grey. Picked out are channels wider than three medians, and channels whose centre lies farther off zero than '
    + 'half their width, so that their range does not reach zero: a scale for all channels would fit the former badly, a '
    + 'symmetric one wastes more than half of its codes on the latter. The table lists them, '
    + 'with the share of the loss\u2019s sensitivity (Fisher information) that they carry.',
  missing(data) {
    if (!data.codebook) return kvcal.channels.NO_CODEBOOK;
    return kvcal.channels.withKeyRanges(data).length ? null
      : 'No layer of this model stores a range for each key channel, so there is nothing to draw.';
  },
  controls(data) {
    const layers = kvcal.channels.withKeyRanges(data);
    return [kvcal.channels.layerControl(layers), kvcal.channels.fractionControl(layers)];
  },
  draw: (data, choice, theme) => kvcal.outlierChannels.draw(data, choice, theme),
});
