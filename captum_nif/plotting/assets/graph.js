"use strict";
// The graph: links by rank, strongest paths, and what the page shows of them.
// Nodes of all layers are numbered in one row, in the order of the layers.

const data = JSON.parse(document.getElementById("data").textContent);
const { layers, gammas, palette } = data;
const el = (id) => document.getElementById(id);

const PATHS = 5; // how many of the strongest paths are shown
const FIRST_LINKS = 1500; // links shown at first, at most
const BATCH = 500; // links drawn by one stroke for each width, at most
const FRAME_MS = 17; // from one frame to the next where nothing is slow
const [SLOWEST, FASTEST] = [250, 20000]; // links drawn in a frame
const CURVED = 5000; // links up to which they are drawn as curves
const LEVELS = 8; // widths that are told apart

const first = [];
let nodeCount = 0;
for (const layer of layers) {
  first.push(nodeCount);
  nodeCount += layer.size;
}
const layerOf = new Int32Array(nodeCount);
layers.forEach((layer, l) => layerOf.fill(l, first[l], first[l] + layer.size));
const isKind = (node, kind) => layers[layerOf[node]].kind === kind;
const isPixel = (node) => layers[layerOf[node]].image !== null;
const columnOf = (node) => layers[layerOf[node]].column;

function nodeName(node) {
  const layer = layers[layerOf[node]];
  let index = node - first[layerOf[node]];
  if (layer.labels) return layer.labels[index];
  const place = [];
  for (const size of [...layer.shape].reverse()) {
    place.unshift(index % size);
    index = Math.floor(index / size);
  }
  return `${layer.name}[${place.join(", ")}]`;
}

// Links leave Python ordered by rank: the share of the flow into a layer that its
// stronger links carry. The links of rank below f are the strongest that carry f.
function prepare(raw) {
  const { source, target } = raw;
  const weight = Float64Array.from(raw.weight);
  const relative = new Float32Array(weight.length);
  const rank = new Float64Array(weight.length);
  const strongest = new Float64Array(layers.length);
  const carried = new Float64Array(layers.length);
  for (let i = 0; i < weight.length; i++) {
    const layer = layerOf[target[i]];
    const size = Math.abs(weight[i]);
    strongest[layer] ||= size;
    relative[i] = size / strongest[layer];
    // Rounding must not spoil the order.
    rank[i] = Math.max(carried[layer], i ? rank[i - 1] : 0);
    carried[layer] += size / raw.intoLayer[layer];
  }
  const dead = new Set(raw.dead);
  const faint = new Uint8Array(weight.length); // 1 where a link is not significant
  for (const link of raw.insignificant) faint[link] = 1;
  const largest = raw.betweenness.reduce(
    (most, value, n) => (isPixel(n) ? most : Math.max(most, value)), 0);
  const incoming = grouped(target);
  const outgoing = grouped(source);
  return { ...raw, weight, relative, rank, faint, dead, largest, incoming, outgoing };
}

// The numbers of the links at each node, without an array for each.
function grouped(ends) {
  const start = new Int32Array(nodeCount + 1);
  for (const node of ends) start[node + 1]++;
  for (let n = 0; n < nodeCount; n++) start[n + 1] += start[n];
  const next = start.slice();
  const links = new Int32Array(ends.length);
  ends.forEach((node, i) => { links[next[node]++] = i; });
  return (node) => links.subarray(start[node], start[node + 1]);
}

// Factor of a link in a path: as in the attributions, its weight in a chain, else
// its part in what enters its target.
function factor(graph, link) {
  const size = Math.abs(graph.weight[link]);
  return graph.isChain ? size : size / graph.flowIn[graph.target[link]];
}

// The best ways from inputs to each node before `end` and it, or from each node
// after it to outputs: lists of { score, link, rest }, best first. The ways from all
// pixels of an image count together; the link is that of the strongest. Links that are
// hidden because they are not significant are on no way.
function bestWays(graph, end, forward) {
  const ways = new Map();
  const [from, links, ends] = forward
    ? ["input", graph.incoming, graph.source]
    : ["output", graph.outgoing, graph.target];
  const stop = forward ? end + 1 : end - 1;
  for (let n = forward ? 0 : nodeCount - 1; n !== stop; n += forward ? 1 : -1) {
    const best = isKind(n, from) ? [{ score: 1, link: -1, rest: null }] : [];
    const image = { score: 0, link: -1, rest: null };
    for (const link of links(n).filter(isShown)) {
      if (forward && isPixel(ends[link])) {
        if (image.link < 0 || factor(graph, link) > factor(graph, image.link)) image.link = link;
        image.score += factor(graph, link);
        continue;
      }
      for (const rest of ways.get(ends[link]) || []) {
        if (!insert(best, { score: rest.score * factor(graph, link), link, rest })) break;
      }
    }
    if (image.score) insert(best, image);
    if (best.length) ways.set(n, best);
  }
  return ways.get(end) || [];
}

// Puts a way in its place if it is among the best.
function insert(best, way) {
  if (best.length === PATHS && way.score <= best[PATHS - 1].score) return false;
  const at = best.findIndex((other) => other.score < way.score);
  best.splice(at < 0 ? best.length : at, 0, way);
  best.length = Math.min(best.length, PATHS);
  return true;
}

const linksOf = (way) => (way && way.link >= 0 ? [way.link, ...linksOf(way.rest)] : []);

// The strongest paths through a node, with their shares in the sum over all.
function bestPaths(graph, node) {
  const before = bestWays(graph, node, true);
  const after = bestWays(graph, node, false);
  const total = graph.pathsIn[node] * graph.pathsOut[node];
  const paths = before.flatMap((a) => after.map((b) => ({
    share: (a.score * b.score) / total,
    links: [...linksOf(a).reverse(), ...linksOf(b)],
  })));
  return paths.filter((path) => path.links.length)
    .sort((a, b) => b.share - a.share).slice(0, PATHS);
}

// How much of the path sum through `node` runs through each other node.
function sharesWith(graph, node) {
  const toNode = new Float64Array(nodeCount);
  const fromNode = new Float64Array(nodeCount);
  toNode[node] = fromNode[node] = 1;
  for (let n = node; n >= 0; n--) {
    for (const link of toNode[n] ? graph.incoming(n) : []) {
      toNode[graph.source[link]] += toNode[n] * factor(graph, link);
    }
  }
  for (let n = node; n < nodeCount; n++) {
    for (const link of fromNode[n] ? graph.outgoing(n) : []) {
      fromNode[graph.target[link]] += fromNode[n] * factor(graph, link);
    }
  }
  const share = (part, all) => (all ? part / all : 0);
  return Float64Array.from(toNode, (_, n) => (n < node
    ? share(graph.pathsIn[n] * toNode[n], graph.pathsIn[node])
    : share(graph.pathsOut[n] * fromNode[n], graph.pathsOut[node])));
}

// ---------------------------------------------------------------- state

const prepared = [];
const state = {
  graph: null, // as from prepare
  share: 1, // of the flow into each layer, whose strongest links are shown
  gamma: gammas.reduce((a, g, i) =>
    (Math.abs(Math.log(g)) < Math.abs(Math.log(gammas[a])) ? i : a), 0),
  onlySignificant: false,
  selected: -1,
  hovered: -1,
  focused: -1,
  community: -1, // shown alone
  paths: [],
  path: -1, // shown alone
  shares: null,
};

function useGraph(number) {
  prepared[number] ||= prepare(data.graphs[number]);
  state.graph = prepared[number];
  state.community = -1;
  setSignificant(false);
  state.share = state.graph.rank[FIRST_LINKS] ?? 1;
  el("share").value = Math.round(1000 * state.share);
  fillLayers();
  layOut();
  select(state.selected);
}

const isShown = (link) => !(state.onlySignificant && state.graph.faint[link]);

// How many links are shown at a share: ranks ascend.
function linksIn(share) {
  const { rank } = state.graph;
  if (share >= 1) return rank.length;
  let low = 0;
  let high = rank.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (rank[middle] < share) low = middle + 1; else high = middle;
  }
  return low;
}
