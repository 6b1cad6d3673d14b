// Three canvases: for links, above them for nodes, names and lit paths, and on top for
// marks, which change with every move of the pointer.

const color = (name) =>
  getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

function communityColor(node) {
  const community = state.graph.communities[state.gamma][node];
  return palette[community] || color("other");
}

// Adds a link to the path of a context: level at both ends, bent over skipped layers.
function trace(context, link, curved) {
  const a = state.graph.source[link];
  const b = state.graph.target[link];
  const [x, y, toX, toY] = [place.x[a], place.y[a], place.x[b], place.y[b]];
  context.moveTo(x, y);
  const skipped = columnOf(b) - columnOf(a) - 1;
  if (!curved) return context.lineTo(toX, toY);
  // No further than to where names begin.
  const room = 18 + (view.upright ? view.width - Math.max(x, toX) : Math.min(y, toY) - view.top);
  const bend = skipped > 0 ? Math.min(90, room, 34 * Math.sqrt(skipped)) : 0;
  if (view.upright) {
    const middle = (y + toY) / 2;
    context.bezierCurveTo(x + bend, middle, toX + bend, middle, toX, toY);
  } else {
    const middle = (x + toX) / 2;
    context.bezierCurveTo(middle, y - bend, middle, toY - bend, toX, toY);
  }
}

// The strongest links come first and each batch goes below what is there, so that
// moving a slider shows the main flow at once however many links there are. Browsers
// paint after the script has run, so how many links fit into a frame is learned from
// how long the last frames took.
let drawing = 0;
let pace = 2000;
function drawLinks() {
  cancelAnimationFrame(drawing);
  const count = linksIn(state.share);
  const canvas = el("links");
  const context = canvas.getContext("2d");
  const colors = [color("link"), color("negative"), color("other")];
  context.globalCompositeOperation = "source-over";
  context.clearRect(0, 0, view.width, view.height);
  context.globalCompositeOperation = "destination-over";
  let next = 0;
  const draw = () => {
    const end = Math.min(next + pace, count);
    for (; next < end; next += BATCH) {
      drawBatch(context, next, Math.min(next + BATCH, end), colors, count <= CURVED);
    }
    next = end;
    canvas.dataset.drawn = String(next);
  };
  let last = performance.now();
  const step = (now) => {
    const slow = now - last > 1.5 * FRAME_MS;
    pace = Math.min(Math.max(Math.round(pace * (slow ? 0.6 : 1.25)), SLOWEST), FASTEST);
    last = now;
    draw();
    if (next < count) drawing = requestAnimationFrame(step);
  };
  draw();
  if (next < count) drawing = requestAnimationFrame(step);
  describe(count);
}

function drawBatch(context, start, end, colors, curved) {
  const strokes = new Map();
  for (let i = start; i < end; i++) {
    if (!isShown(i) || !inCommunity(i)) continue;
    const level = Math.ceil(state.graph.relative[i] * LEVELS);
    const kind = state.graph.faint[i] ? 2 : Number(state.graph.weight[i] < 0);
    const key = colors.length * level + kind;
    if (!strokes.has(key)) strokes.set(key, []);
    strokes.get(key).push(i);
  }
  for (const key of [...strokes.keys()].sort((a, b) => b - a)) {
    const relative = Math.floor(key / colors.length) / LEVELS;
    const kind = key % colors.length;
    const faint = kind === 2;
    context.strokeStyle = colors[kind];
    context.lineWidth = (view.crowded ? 0.5 : 1) * (faint ? 0.8 : 0.4 + 2.8 * relative);
    context.globalAlpha = faint ? 0.6 : 0.12 + 0.55 * relative;
    // Thousands of dashed lines would take long.
    context.setLineDash(faint && curved ? [2, 4] : []);
    context.beginPath();
    for (const link of strokes.get(key)) trace(context, link, curved);
    context.stroke();
  }
}

function inCommunity(link) {
  if (state.community < 0) return true;
  const groups = state.graph.communities[state.gamma];
  return groups[state.graph.source[link]] === state.community
    && groups[state.graph.target[link]] === state.community;
}

function drawNodes() {
  const context = el("nodes").getContext("2d");
  context.clearRect(0, 0, view.width, view.height);
  const paths = state.path < 0 ? state.paths : [state.paths[state.path]];
  const lit = new Set(paths.flatMap((path) => path.links));
  const ends = new Set([...lit].flatMap((i) =>
    [state.graph.source[i], state.graph.target[i]]));
  if (state.selected >= 0) ends.add(state.selected);
  el("links").classList.toggle("dimmed", lit.size > 0);
  for (const l of boxes.keys()) drawImage(context, l);
  drawPaths(context, paths);
  for (let n = 0; n < nodeCount; n++) {
    if (!isPixel(n)) drawNode(context, n, ends.size > 0 && !ends.has(n));
  }
  for (const n of ends) if (isPixel(n)) ring(context, n, 1, color("accent"));
  drawNames(context, ends);
  drawMarks();
}

function drawMarks() {
  const context = el("marks").getContext("2d");
  context.clearRect(0, 0, view.width, view.height);
  if (state.selected >= 0) ring(context, state.selected, 2, color("accent"), 3);
  if (state.focused >= 0) ring(context, state.focused, 2, color("accent"), 4);
  if (state.hovered >= 0) ring(context, state.hovered, 1.5, color("ink"), 2);
}

function drawPaths(context, paths) {
  const most = Math.max(...paths.map((path) => path.share));
  // The strongest last, on top.
  for (const path of [...paths].reverse()) {
    for (const link of path.links) {
      const negative = state.graph.weight[link] < 0;
      context.strokeStyle = color(negative ? "negative" : "accent");
      context.lineWidth = 1.2 + 4 * (path.share / most);
      context.globalAlpha = 0.35 + 0.6 * (path.share / most);
      context.setLineDash(state.graph.faint[link] ? [5, 5] : []);
      context.beginPath();
      trace(context, link, true);
      context.stroke();
    }
  }
  context.globalAlpha = 1;
  context.setLineDash([]);
}

function drawNode(context, node, faded) {
  const groups = state.graph.communities[state.gamma];
  const other = state.community >= 0 && groups[node] !== state.community;
  context.globalAlpha = faded || other ? 0.3 : 1;
  context.beginPath();
  context.arc(place.x[node], place.y[node], radius[node], 0, 2 * Math.PI);
  const dead = state.graph.dead.has(node);
  context.fillStyle = dead ? color("page") : communityColor(node);
  context.fill();
  context.lineWidth = 1;
  context.strokeStyle = dead ? color("muted") : color("edge");
  if (radius[node] > 2) context.stroke();
  context.globalAlpha = 1;
}

function ring(context, node, width, stroke, apart = 0) {
  context.strokeStyle = stroke;
  context.lineWidth = width;
  context.beginPath();
  if (isPixel(node)) {
    const side = gaps[layerOf[node]] + 2 * apart;
    context.rect(place.x[node] - side / 2, place.y[node] - side / 2, side, side);
  } else {
    context.arc(place.x[node], place.y[node], radius[node] + apart, 0, 2 * Math.PI);
  }
  context.stroke();
}

// Pixels show the flow that leaves them, or their share in the flow to a selected
// node.
function drawImage(context, l) {
  const { cell } = boxes.get(l);
  const { size, image } = layers[l];
  const start = first[l];
  const reaches = state.selected >= start + size;
  const values = reaches ? state.shares : state.graph.flowOut;
  let most = 0;
  for (let i = 0; i < size; i++) most = Math.max(most, values[start + i]);
  const [planes, rows, columns] = image;
  for (let plane = 0; plane < planes; plane++) {
    const corner = start + plane * rows * columns;
    const [x, y] = [place.x[corner] - cell / 2, place.y[corner] - cell / 2];
    // Links begin below, and shine through.
    context.globalAlpha = 0.8;
    context.fillStyle = color("page");
    context.fillRect(x, y, columns * cell, rows * cell);
    context.globalAlpha = 1;
    context.strokeStyle = color("rule");
    context.lineWidth = 1;
    context.strokeRect(x, y, columns * cell, rows * cell);
  }
  for (let i = 0; i < size; i++) {
    const part = most ? values[start + i] / most : 0;
    context.fillStyle = `rgba(${color.pixel}, ${0.03 + 0.72 * part})`;
    const [x, y] = [place.x[start + i] - cell / 2, place.y[start + i] - cell / 2];
    context.fillRect(x, y, cell + 0.3, cell + 0.3);
  }
  el("pixel-meaning").textContent = reaches
    ? `share in the flow to ${nodeName(state.selected)}` : "flow out";
}

function drawNames(context, ends) {
  context.textBaseline = "middle";
  const last = Math.max(...layers.map((layer) => layer.column));
  layers.forEach((layer, l) => {
    drawHeading(context, l);
    if (layer.image) return;
    const before = layer.column === 0 && layer.column !== last;
    for (let i = 0; i < layer.size; i++) {
      const node = first[l] + i;
      const named = layer.kind !== "hidden" && gaps[l] >= (view.upright ? 14 : 10);
      if (named || ends.has(node)) writeBeside(context, node, before);
    }
  });
}

function writeBeside(context, node, before) {
  const text = shortName(node);
  const away = radius[node] + 5;
  context.font = "12px system-ui, 'Liberation Sans', sans-serif";
  context.lineWidth = 3;
  context.strokeStyle = color("page");
  context.fillStyle = color("ink");
  context.save();
  context.translate(place.x[node], place.y[node]);
  if (view.upright) {
    const slant = slanted[layerOf[node]];
    context.translate(0, (before ? -1 : 1) * (slant ? away : away + 6));
    if (slant) context.rotate((before ? -1 : 1) * Math.PI / 4);
    context.textAlign = slant ? "left" : "center";
  } else {
    context.translate(before ? -away : away, 0);
    context.textAlign = before ? "right" : "left";
  }
  context.strokeText(text, 0, 0);
  context.fillText(text, 0, 0);
  context.restore();
}

function drawHeading(context, l) {
  const layer = layers[l];
  const last = first[l] + layer.size - 1;
  const x = (place.x[first[l]] + place.x[last]) / 2;
  const y = place.y[first[l]] - gaps[l] / 2;
  const alone = layers.every((other) => other === layer || other.column !== layer.column);
  const name = layer.name.length > 22 ? `${layer.name.slice(0, 21)}…` : layer.name;
  const count = `${layer.size.toLocaleString("en")} node${layer.size > 1 ? "s" : ""}`;
  context.fillStyle = color("ink");
  context.save();
  if (view.upright) {
    const above = layer.image || view.crowded ? 0 : 16;
    context.translate(0, (place.y[first[l]] + place.y[last]) / 2 - above);
    context.font = `600 ${view.crowded ? 10 : 12}px system-ui, 'Liberation Sans', sans-serif`;
    context.textAlign = "left";
    context.strokeStyle = color("page");
    context.lineWidth = 3;
    context.strokeText(name, 0, 0);
    context.fillText(name, 0, 0);
  } else if (view.crowded) {
    context.translate(x, alone ? 84 : y - 8);
    context.rotate(-Math.PI / 4);
    context.font = "11px system-ui, 'Liberation Sans', sans-serif";
    context.textAlign = "left";
    context.fillText(name, 0, 0);
  } else {
    context.translate(x, alone ? 12 : y - 30);
    context.textAlign = "center";
    context.font = "600 13px system-ui, 'Liberation Sans', sans-serif";
    context.fillText(name, 0, 0);
    context.font = "11px system-ui, 'Liberation Sans', sans-serif";
    context.fillStyle = color("muted");
    context.fillText(count, 0, 15);
  }
  context.restore();
}
