// plan.js: how many bytes the cache takes with each method, against the context where there are plans for several.
kvcal.planPicture = {
  plans(data) {
    return (data.plans || []).filter((plan) => plan && kvcal.isNumber(plan.context) && (plan.methods || []).length);
  },

  // Names of all methods, in the plans' order.
  names(plans) {
    return [...new Set(plans.flatMap((plan) => plan.methods.map((method) => method.name)))];
  },

  controls(data) {
    const plans = kvcal.planPicture.plans(data);
    const names = kvcal.planPicture.names(plans);
    const families = [...new Set(names.map(kvcal.familyOf))];
    const options = [{value: 'all', text: 'all'}, ...families.map((family) => ({
      value: family, text: names.filter((name) => kvcal.familyOf(name) === family).join(', '),
    }))];
    const controls = [{name: 'methods', label: 'Methods', options, initial: 'all'}];
    if (plans.length > 1) {
      controls.push({
        name: 'scale', label: 'Scales', initial: 'log',
        options: [{value: 'log', text: 'logarithmic'}, {value: 'linear', text: 'linear'}],
      });
    }
    return controls;
  },

  // What the GPUs have beside the weights; null where not known.
  room(plan) {
    if (!kvcal.isNumber(plan.gpu_memory_bytes) || !kvcal.isNumber(plan.weights_bytes)) return null;
    return plan.gpu_memory_bytes * plan.gpus - plan.weights_bytes;
  },

  method: (plan, name) => plan.methods.find((method) => method.name === name),

  line(plans, name, theme) {
    const style = theme.of(name);
    const points = plans.filter((plan) => kvcal.planPicture.method(plan, name));
    const bytes = points.map((plan) => kvcal.planPicture.method(plan, name).cache_bytes);
    return {
      type: 'scatter', mode: 'lines+markers', name, x: points.map((plan) => plan.context), y: bytes,
      line: {color: style.color, dash: style.dash, width: 2},
      marker: {color: style.color, symbol: style.symbol, size: 8},
      text: points.map((plan, i) => `${kvcal.tokens(plan.context)} tokens: ${kvcal.bytes(bytes[i])}`),
      hovertemplate: `${name}<br>%{text}<extra></extra>`,
    };
  },

  bars(plan, names, theme) {
    const bytes = names.map((name) => kvcal.planPicture.method(plan, name).cache_bytes);
    return {
      type: 'bar', orientation: 'h', y: names, x: bytes, showlegend: false,
      marker: {color: names.map((name) => theme.of(name).color)},
      text: bytes.map((value) => kvcal.bytes(value)), textposition: 'auto', hovertemplate: '%{y}: %{text}<extra></extra>',
    };
  },

  roomLine(x, y, theme) {
    return {
      type: 'scatter', mode: 'lines', name: 'room beside the weights', x, y,
      line: {color: theme.text, width: 2, dash: '8px,4px'},
      hovertemplate: 'room beside the weights<extra></extra>',
    };
  },

  // Ticks in round bytes from `least` to `greatest`; `most` of them at most, or few more.
  byteTicks(least, greatest, log, most) {
    const values = [];
    if (log) {
      const [first, last] = [Math.ceil(Math.log2(least)), Math.floor(Math.log2(greatest))];
      const step = Math.max(1, Math.ceil((last - first + 1) / most));
      for (let power = first; power <= last; power += step) values.push(2 ** power);
    } else {
      const unit = 1024 ** Math.max(0, Math.floor(Math.log2(greatest) / 10));
      const raw = greatest / unit / most;
      const power = 10 ** Math.floor(Math.log10(raw));
      const step = [1, 2, 5, 10].map((factor) => factor * power).find((one) => one >= raw) * unit;
      for (let i = 0; i * step <= greatest; i++) values.push(i * step);
    }
    return {tickmode: 'array', tickvals: values, ticktext: values.map((value) => kvcal.planPicture.roundBytes(value))};
  },

  // 512 MiB, 2 GiB, 2.5 GiB: without decimals that say nothing.
  roundBytes: (value) => kvcal.bytes(value).replace(/(\.\d*?)0+(?=\u00a0)/, (_, kept) => (kept === '.' ? '' : kept)),

  // Ticks at contexts that are planned, those left out that would lie too close to the one before.
  contextTicks(plans, log, most) {
    const place = (context) => (log ? Math.log(context) : context);
    const [first, last] = [place(plans[0].context), place(plans[plans.length - 1].context)];
    const shown = [];
    for (const plan of plans) {
      const before = shown.length ? place(shown[shown.length - 1]) : -Infinity;
      if (place(plan.context) - before >= (last - first) / most - 1e-9) shown.push(plan.context);
    }
    return {tickmode: 'array', tickvals: shown, ticktext: shown.map(kvcal.tokens)};
  },

  lineLayout(plans, traces, log, theme) {
    const all = traces.flatMap((trace) => trace.y).filter((value) => value > 0);
    const [least, greatest] = [Math.min(...all), Math.max(...all)];
    const range = log ? [Math.log10(least / 1.3), Math.log10(greatest * 1.3)] : [0, greatest * 1.05];
    const type = log ? 'log' : 'linear';
    const ticks = kvcal.planPicture.byteTicks(log ? least / 1.3 : 0, greatest * (log ? 1.3 : 1.05), log, theme.small ? 6 : 8);
    return {
      height: 460, hovermode: 'closest', showlegend: true,
      margin: {l: 80, r: 12, t: 16, b: theme.small ? 150 : 60},
      xaxis: {type, title: {text: 'context (tokens)'}, ...kvcal.planPicture.contextTicks(plans, log, theme.small ? 5 : 10)},
      yaxis: {type, title: {text: `cache, ${kvcal.planPicture.batchText(plans[0])}`}, range, ...ticks},
    };
  },

  barLayout(plan, names, bytes, theme) {
    const greatest = Math.max(1, ...bytes);
    return {
      height: 120 + 30 * names.length, hovermode: 'closest', showlegend: bytes.length > names.length,
      legend: {orientation: 'h', x: 0, y: -0.25, yanchor: 'top'}, margin: {l: 80, r: 12, t: 16, b: 90},
      xaxis: {
        title: {text: `cache at ${kvcal.tokens(plan.context)} tokens, ${kvcal.planPicture.batchText(plan)}`},
        range: [0, greatest * 1.05],
        ...kvcal.planPicture.byteTicks(0, greatest * 1.05, false, theme.small ? 4 : 8),
      },
      yaxis: {type: 'category', autorange: 'reversed'},
    };
  },

  batchText: (plan) => (plan.batch === 1 ? 'one sequence' : `${kvcal.count(plan.batch)} sequences`),

  drawLines(plans, names, choice, theme) {
    const traces = names.map((name) => kvcal.planPicture.line(plans, name, theme));
    const room = kvcal.planPicture.room(plans[0]);
    if (room > 0) {
      const ends = [plans[0].context, plans[plans.length - 1].context];
      traces.push(kvcal.planPicture.roomLine(ends, [room, room], theme));
    }
    return {traces, layout: kvcal.planPicture.lineLayout(plans, traces, choice.scale !== 'linear', theme)};
  },

  drawBars(plan, names, theme) {
    const traces = [kvcal.planPicture.bars(plan, names, theme)];
    const room = kvcal.planPicture.room(plan);
    const bytes = [...traces[0].x];
    if (room > 0) {
      traces.push(kvcal.planPicture.roomLine([room, room], [names[0], names[names.length - 1]], theme));
      bytes.push(room);
    }
    return {traces, layout: kvcal.planPicture.barLayout(plan, names, bytes, theme)};
  },

  // Of the largest context: the greatest and the least cache, and which methods have room for it.
  summary(plans, names) {
    const plan = plans[plans.length - 1];
    const methods = names.map((name) => kvcal.planPicture.method(plan, name)).filter(Boolean);
    if (!methods.length) return '';
    const sorted = [...methods].sort((a, b) => a.cache_bytes - b.cache_bytes);
    const [least, greatest] = [sorted[0], sorted[sorted.length - 1]];
    const start = `At ${kvcal.tokens(plan.context)} tokens, ${kvcal.planPicture.batchText(plan)}, the cache takes `
      + `${kvcal.bytes(greatest.cache_bytes)} with ${greatest.name}`;
    const ratio = greatest.cache_bytes / least.cache_bytes;
    const rest = least === greatest ? '.'
      : ` and ${kvcal.bytes(least.cache_bytes)} with ${least.name}, ${kvcal.short(ratio, 2)} times less.`;
    return start + rest + kvcal.planPicture.roomText(plan, methods);
  },

  roomText(plan, methods) {
    const room = kvcal.planPicture.room(plan);
    if (room === null) {
      return kvcal.isNumber(plan.weights_bytes) ? ' No GPU memory was given (--gpu-memory), so whether it fits is not said.'
        : ' The size of the weights is not known, so whether it fits is not said.';
    }
    const gpus = plan.gpus === 1 ? 'one GPU' : `${plan.gpus} GPUs`;
    const where = `${gpus} of ${kvcal.bytes(plan.gpu_memory_bytes)}`;
    if (room <= 0) return ` The weights, ${kvcal.bytes(plan.weights_bytes)}, fill ${where} already.`;
    const fitting = methods.filter((method) => method.fits === true).length;
    const farthest = methods.filter((method) => kvcal.isNumber(method.largest_context))
      .sort((a, b) => b.largest_context - a.largest_context)[0];
    const far = farthest ? ` ${farthest.name} goes farthest, to ${kvcal.count(farthest.largest_context)} tokens.` : '';
    return ` Beside the weights, ${where} ${plan.gpus === 1 ? 'has' : 'have'} room for ${kvcal.bytes(room)}: ${fitting} of `
      + `${methods.length} methods fit.${far}`;
  },

  table(plans, names) {
    const row = (plan, method) => [
      plan.context, method.name, method.bits_per_value, method.cache_bytes, method.cache_bytes_per_gpu,
      method.total_bytes_per_gpu, typeof method.fits === 'boolean' ? method.fits : null, method.largest_context,
    ];
    const rows = plans.flatMap((plan) => plan.methods.filter((method) => names.includes(method.name))
      .map((method) => row(plan, method)));
    return {
      rows, head: ['context', 'method', 'bits/value', 'cache (bytes)', 'cache on each GPU (bytes)',
        'with weights, on each GPU (bytes)', 'fits', 'largest context'],
    };
  },

  draw(data, choice, theme) {
    const plans = kvcal.planPicture.plans(data);
    const names = kvcal.planPicture.names(plans)
      .filter((name) => choice.methods === 'all' || kvcal.familyOf(name) === choice.methods);
    const drawn = plans.length > 1 ? kvcal.planPicture.drawLines(plans, names, choice, theme)
      : kvcal.planPicture.drawBars(plans[0], names, theme);
    return {...drawn, summary: kvcal.planPicture.summary(plans, names), table: kvcal.planPicture.table(plans, names)};
  },
};

kvcal.pictures.push({
  id: 'plan', section: 'memory', title: 'Cache memory',
  about: 'What the KV cache takes with each method: codes, scales, outliers with their places, and exact tokens, on all GPUs '
    + 'together. Where GPU memory and the weights\u2019 size are known, a line shows what is left beside the weights; a method '
    + 'fits where it lies below. What a server needs beside weights and cache, such as activations, is not counted.',
  missing(data) {
    return kvcal.planPicture.plans(data).length ? null
      : 'There is no memory plan here. Run kvcal plan --html with the model, and --gpu-memory to see what fits.';
  },
  controls: (data) => kvcal.planPicture.controls(data),
  draw: (data, choice, theme) => kvcal.planPicture.draw(data, choice, theme),
});
