// channels.js: what the pictures of a codebook share: its layers, tensors, outlier sets and the channels' names.
kvcal.channels = {
  OLD_FILE: 'An older version of kvcal made this codebook; calibrating again with this one adds what is missing.',

  NO_CODEBOOK: 'There is no codebook here. Run kvcal inspect with a codebook file and --html to see it.',

  layers(data) {
    return (data.codebook && data.codebook.layers) || [];
  },

  // The names of a layer's tensors: key and value first, then any other.
  tensors(layer) {
    const names = Object.keys(layer).filter((name) => {
      const tensor = layer[name];
      return tensor && typeof tensor === 'object' && Array.isArray(tensor.outliers);
    });
    const rank = (name) => (name === 'key' ? 0 : name === 'value' ? 1 : 2);
    return names.sort((a, b) => rank(a) - rank(b) || (a < b ? -1 : 1));
  },

  // A tensor's name in a sentence: keys, values, or as the file says.
  title(name) {
    return name === 'key' ? 'keys' : name === 'value' ? 'values' : name;
  },

  // The set of a list (outliers or rope) with this fraction, or null.
  set(list, fraction) {
    return (list || []).find((set) => Math.abs(set.fraction - Number(fraction)) < 1e-12) || null;
  },

  // Layers whose keys have a range for each channel.
  withKeyRanges(data) {
    return kvcal.channels.layers(data).filter((layer) => layer.key && (layer.key.outliers || []).some((set) => set.lower));
  },

  // Their outlier fractions, ascending, as options; the first choice is the smallest that also has ranges after RoPE.
  fractionControl(layers) {
    const all = new Set();
    const rotated = new Set();
    for (const layer of layers) {
      for (const set of layer.key.outliers) if (set.lower) all.add(set.fraction);
      for (const set of layer.key.rope || []) rotated.add(set.fraction);
    }
    const ascending = [...all].sort((a, b) => a - b);
    const best = ascending.find((fraction) => rotated.has(fraction));
    return {
      name: 'fraction', label: 'Outliers left out',
      options: ascending.map((fraction) => ({value: String(fraction), text: kvcal.channels.fractionText(fraction)})),
      initial: String(best === undefined ? ascending[0] : best),
    };
  },

  fractionText(fraction) {
    return Number(fraction) === 0 ? 'none (least to greatest)' : `${Number((Number(fraction) * 100).toPrecision(6))} %`;
  },

  layerControl(layers) {
    return {
      name: 'layer', label: 'Layer', options: layers.map((layer) => ({value: String(layer.layer), text: String(layer.layer)})),
      initial: layers.length ? String(layers[0].layer) : '',
    };
  },

  layer(layers, choice) {
    return layers.find((layer) => String(layer.layer) === String(choice)) || layers[0];
  },

  heads(layer) {
    return layer.kv_heads || layer.key.heads || 1;
  },

  // upper - lower of each channel, null where the model has none (no such set).
  widths(set) {
    if (!set || !set.lower) return null;
    const lower = kvcal.array(set.lower);
    const upper = kvcal.array(set.upper);
    return Float64Array.from(lower, (value, i) => upper[i] - value);
  },

  median(values) {
    const sorted = Float64Array.from(values).sort();
    const n = sorted.length;
    if (n === 0) return NaN;
    return n % 2 ? sorted[(n - 1) / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
  },

  // How many neighbouring channels one column stands for (1 but in very large models).
  perColumn(data) {
    return (data.codebook && data.codebook.channels_per_column) || 1;
  },

  // 'channel 12', or 'channels 24 to 25' where a column stands for several. Counted within the head.
  columnText(column, perColumn) {
    return perColumn === 1 ? `${column}` : `${column * perColumn} to ${(column + 1) * perColumn - 1}`;
  },
};
