// Where layers and nodes stand: layers along one side of the picture (u), from left to
// right or on an upright screen from top to bottom, and their nodes along the other (v).

const place = { x: new Float64Array(nodeCount), y: new Float64Array(nodeCount) };
const radius = new Float64Array(nodeCount);
const gaps = [];
const slanted = []; // layers whose names of nodes do not fit side by side
const boxes = new Map(); // of layers that are images
let view = {};

const narrow = window.matchMedia("(max-width: 760px)");

function layOut() {
  const deepest = Math.max(...layers.map((layer) => layer.column));
  el("picture").style.minHeight = narrow.matches ? `${220 + 24 * deepest}px` : "";
  const box = el("picture").getBoundingClientRect();
  // A frame may have no size yet.
  const [width, height] = [Math.max(box.width, 300), Math.max(box.height, 240)];
  const upright = width < 0.9 * height;
  boxes.clear();
  const along = upright ? height : width;
  const across = upright ? width : height;
  const columns = deepest + 1;
  const crowded = along / columns < (upright ? 44 : 74);
  const sides = upright ? [74, 74] : [margin(0), margin(columns - 1)];
  // Names of layers stand across, or, where there are many, aslant or to the left.
  const top = upright ? (crowded ? 88 : 16) : (crowded ? 92 : 46);
  const usable = across - top - 16;
  view = { width, height, upright, crowded, top };
  const images = layers.filter((layer) => layer.image);
  const cell = Math.min(...images.map((layer) => {
    const [planes, rows, cells] = layer.image;
    const [u, v] = upright ? [rows, planes * cells] : [cells, planes * rows];
    return Math.min(0.25 * along / u, 0.86 * usable / images.length / v);
  }));
  const deep = Math.max(0, ...images.map((l) => cell * l.image[upright ? 1 : 2]));
  const step = (along - sides[0] - sides[1] - deep) / Math.max(columns - 1, 1);
  for (let column = 0; column < columns; column++) {
    const members = layers.map((_, l) => l).filter((l) => layers[l].column === column);
    const band = usable / members.length;
    members.forEach((l, i) => {
      const u = sides[0] + deep + column * step;
      placeLayer(l, u, top + i * band, band, cell, step);
    });
  }
  sizeNodes();
  for (const canvas of document.querySelectorAll("#picture canvas")) {
    const scale = Math.min(window.devicePixelRatio || 1, 2);
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    canvas.getContext("2d").setTransform(scale, 0, 0, scale, 0, 0);
  }
  drawLinks();
  drawNodes();
}

// Letters in the longest name that is written beside a layer's nodes.
function longestName(l) {
  const { size, kind, image } = layers[l];
  if (kind === "hidden" || image || size > 200) return 0;
  return Math.max(...Array.from({ length: size }, (_, i) => shortName(first[l] + i).length));
}

// Space for the names of a column's nodes.
function margin(column) {
  const longest = layers.map((layer, l) => (layer.column === column ? longestName(l) : 0));
  return Math.min(44 + 6.5 * Math.max(...longest), 0.24 * el("picture").clientWidth);
}

function shortName(node) {
  const name = nodeName(node);
  return name.length > 20 ? `${name.slice(0, 19)}…` : name;
}

function placeLayer(l, u, start, band, cell, step) {
  const layer = layers[l];
  const put = (i, a, b) => {
    place.x[first[l] + i] = view.upright ? b : a;
    place.y[first[l] + i] = view.upright ? a : b;
  };
  if (layer.image) {
    const [planes, rows, columns] = layer.image;
    const [du, dv] = view.upright ? [rows, columns] : [columns, rows];
    const from = start + (band - planes * dv * cell) / 2;
    for (let i = 0; i < layer.size; i++) {
      const plane = Math.floor(i / (rows * columns));
      const row = Math.floor(i / columns) % rows;
      const [a, b] = view.upright ? [row, i % columns] : [i % columns, row];
      put(i, u - (du - a - 0.5) * cell, from + (plane * dv + b + 0.5) * cell);
    }
    boxes.set(l, { cell });
    gaps[l] = cell;
    return;
  }
  // Nodes that do not fit into one line stand in several.
  const lines = Math.ceil(layer.size / Math.max(1, Math.floor(band / 4.5)));
  const perLine = Math.ceil(layer.size / lines);
  const gap = Math.min(64, band / perLine);
  const apart = Math.min(gap, (0.6 * step) / lines);
  for (let i = 0; i < layer.size; i++) {
    const line = Math.floor(i / perLine);
    const a = u + (line - (lines - 1) / 2) * apart;
    put(i, a, start + band / 2 + ((i % perLine) - (perLine - 1) / 2) * gap);
  }
  gaps[l] = lines > 1 ? Math.min(gap, apart) : gap;
  slanted[l] = layer.kind !== "hidden" && gap < 7 * longestName(l);
}

function sizeNodes() {
  const { betweenness, largest } = state.graph;
  for (let n = 0; n < nodeCount; n++) {
    const part = largest ? Math.sqrt(betweenness[n] / largest) : 0;
    radius[n] = Math.max(1, Math.min(3 + 9 * part, 0.46 * gaps[layerOf[n]]));
  }
}

function nodeAt(x, y, reach) {
  let found = -1;
  let least = reach;
  for (let n = 0; n < nodeCount; n++) {
    const inside = isPixel(n) ? gaps[layerOf[n]] / 2 : radius[n];
    const distance = Math.hypot(place.x[n] - x, place.y[n] - y) - inside;
    if (distance < least) [found, least] = [n, distance];
  }
  return found;
}
