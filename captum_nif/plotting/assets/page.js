// Words, controls and keys. Names reach the page as text only, never as markup.

// ---------------------------------------------------------------- words

function percent(share) {
  const value = 100 * share;
  if (value === 0 || value >= 99.95) return `${value.toFixed(0)} %`;
  return `${value >= 1 ? value.toFixed(1) : Number(value.toPrecision(2))} %`;
}

function number(value) {
  if (value >= 1000) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(3)));
}

function append(parent, tag, text, properties = {}) {
  const child = document.createElement(tag);
  if (text !== undefined) child.textContent = text;
  Object.assign(child, properties);
  parent.append(child);
  return child;
}

function describe(count) {
  const { total, rank, target, weight, intoLayer } = state.graph;
  const drawn = new Float64Array(layers.length);
  let shown = 0;
  for (let i = 0; i < count; i++) {
    if (!isShown(i)) continue;
    shown++;
    drawn[layerOf[target[i]]] += Math.abs(weight[i]) / intoLayer[layerOf[target[i]]];
  }
  const entered = intoLayer.map((flow, l) => l).filter((l) => intoLayer[l] > 0);
  const share = entered.reduce((sum, l) => sum + drawn[l], 0) / (entered.length || 1);
  const links = (n) => n.toLocaleString("en");
  const hidden = Math.max(0, 1 - share);
  let text = `Showing ${links(shown)} of ${links(total)} links: `
    + (shown === total ? "all of the flow." : `${percent(hidden)} of flow hidden.`);
  if (rank.length < total) text += ` This page holds the strongest ${links(rank.length)}.`;
  el("status").textContent = text;
  el("share-value").textContent = percent(Math.min(1, share));
  el("share").setAttribute("aria-valuetext", percent(share));
}

function factsOf(node) {
  const { flowIn, flowOut, betweenness, communities, dead } = state.graph;
  const facts = [["Layer", layers[layerOf[node]].name]];
  if (!isKind(node, "input")) facts.push(["Flow in", `${number(flowIn[node])} nats`]);
  if (!isKind(node, "output")) facts.push(["Flow out", `${number(flowOut[node])} nats`]);
  facts.push(["Betweenness", number(betweenness[node])]);
  facts.push(["Community", String(communities[state.gamma][node])]);
  if (dead.has(node)) facts.push(["Dead", "no flow runs through it"]);
  if (state.selected >= 0 && node !== state.selected) {
    facts.push([`With ${shortName(state.selected)}`, `${percent(state.shares[node])} of its flow`]);
  }
  return facts;
}

function fillCard() {
  const node = [state.hovered, state.focused, state.selected].find((n) => n >= 0) ?? -1;
  el("node-name").textContent = node >= 0 ? nodeName(node) : "";
  el("hint").hidden = node >= 0;
  el("facts").replaceChildren();
  if (node < 0) return;
  for (const [term, value] of factsOf(node)) {
    append(el("facts"), "dt", term);
    const cell = append(el("facts"), "dd");
    if (term === "Community") swatch(cell, communityColor(node));
    cell.append(value);
  }
}

function swatch(parent, fill) {
  append(parent, "i", "", { className: "swatch" }).style.background = fill;
}

// Ways from all pixels count together, except where one pixel is asked for.
const pathName = (node) =>
  (isPixel(node) && node !== state.selected ? layers[layerOf[node]].name : nodeName(node));

// The names along a path; a dashed arrow is a link that is not significant.
function pathNames({ links }) {
  const { source, target, faint } = state.graph;
  return links.reduce(
    (names, i) => `${names} ${faint[i] ? "⇢" : "→"} ${pathName(target[i])}`,
    pathName(source[links[0]]));
}

function fillPaths() {
  const { graph, selected, paths } = state;
  el("paths").hidden = selected < 0;
  el("path-list").replaceChildren();
  if (selected < 0) return;
  paths.forEach((path, p) => {
    const button = append(append(el("path-list"), "li"), "button", undefined, { type: "button" });
    append(button, "span", pathNames(path));
    append(button, "b", percent(path.share));
    const light = (which) => () => { state.path = which; drawNodes(); };
    button.addEventListener("pointerenter", light(p));
    button.addEventListener("pointerleave", light(-1));
    button.addEventListener("focus", light(p));
    button.addEventListener("blur", light(-1));
  });
  const all = paths.reduce((sum, path) => sum + path.share, 0);
  const whole = `the sum over all paths through ${nodeName(selected)} (Eq. 4, absolute values)`;
  const bundled = paths.some(({ links: [link] }) => isPixel(graph.source[link]))
    && !isPixel(selected);
  const dashed = paths.some(({ links }) => links.some((i) => graph.faint[i]));
  const only = state.onlySignificant ? " of significant links" : "";
  el("path-note").textContent = paths.length
    ? `Together ${percent(all)} of ${whole}.${bundled
      ? " Paths from all pixels count together; each line starts at the strongest." : ""}${dashed
      ? " Dashed (⇢): not significant." : ""}`
    : `No path${only} from an input to an output runs through ${nodeName(selected)}.`;
}

// The largest communities come first; nodes without links are alone in theirs.
function fillCommunities() {
  const sizes = [];
  for (const group of state.graph.communities[state.gamma]) {
    sizes[group] = (sizes[group] || 0) + 1;
  }
  const several = sizes.filter((size) => size > 1);
  el("communities").replaceChildren();
  several.slice(0, 12).forEach((size, group) => {
    const button = append(el("communities"), "button", undefined, { type: "button" });
    button.setAttribute("aria-pressed", String(state.community === group));
    swatch(button, palette[group] || color("other"));
    button.append(`${group} (${size.toLocaleString("en")})`);
    button.addEventListener("click", () => {
      state.community = state.community === group ? -1 : group;
      fillCommunities();
      drawLinks();
      drawNodes();
      el("communities").children[group].focus();
    });
  });
  const smaller = Math.max(0, several.length - 12);
  const alone = sizes.length - several.length;
  const rest = [[smaller, "smaller"], [alone, alone > 1 ? "single nodes" : "single node"]];
  const more = rest.filter(([count]) => count).map((part) => part.join(" "));
  el("communities").append(more.length ? `and ${more.join(", ")}` : "");
  const gamma = number(gammas[state.gamma]);
  const count = `${several.length} ${several.length === 1 ? "community" : "communities"}`;
  el("gamma-value").textContent = `${gamma}: ${count}`;
  el("gamma").setAttribute("aria-valuetext", `${gamma}, ${count}`);
}

function fillLayers() {
  const { summary, weight, insignificant } = state.graph;
  el("layers").replaceChildren();
  const line = (kind, cells) => {
    const row = append(el("layers"), "tr");
    for (const cell of cells) append(row, kind, cell);
  };
  line("th", ["layer", "flow, nats", "effective nodes", "dead", "central"]);
  summary.layers.forEach((row, l) => {
    const { name, size } = layers[l];
    const central = row.central[0] ?? "–";
    line("td", [
      name,
      number(row.flow),
      `${number(row.effective)} of ${size.toLocaleString("en")}`,
      String(row.dead),
      central.startsWith(`${name}[`) ? central.slice(name.length) : central,
    ]);
  });
  el("remarks").textContent = (summary.bottleneck ? `Bottleneck: layer ${summary.bottleneck}. ` : "")
    + "Effective: how many nodes carry the flow to the outputs.";
  el("negative-legend").hidden = !weight.some((flow) => flow < 0);
  el("faint-legend").hidden = !insignificant.length;
  el("significant-choice").hidden = !insignificant.length;
}

// ---------------------------------------------------------------- acting

function select(node) {
  state.selected = node;
  state.path = -1;
  state.paths = node < 0 ? [] : bestPaths(state.graph, node);
  state.shares = node < 0 ? null : sharesWith(state.graph, node);
  fillCard();
  fillPaths();
  fillCommunities();
  drawNodes();
}

function setSignificant(only) {
  state.onlySignificant = only;
  el("significant").checked = only;
}

function hover(node) {
  if (node === state.hovered) return;
  state.hovered = node;
  el("nodes").classList.toggle("pointing", node >= 0);
  fillCard();
  drawMarks();
}

function focusOn(node) {
  state.focused = node;
  if (node >= 0) {
    const facts = factsOf(node).map(([term, value]) => `${term} ${value}`).join(", ");
    el("spoken").textContent = `${nodeName(node)}: ${facts}`;
  }
  fillCard();
  drawMarks();
}

// The nearest node in a direction, sooner ahead than aside.
function neighbor(node, dx, dy) {
  let found = node;
  let least = Infinity;
  for (let n = 0; n < nodeCount; n++) {
    const x = place.x[n] - place.x[node];
    const y = place.y[n] - place.y[node];
    const ahead = x * dx + y * dy;
    if (ahead < 1) continue;
    const cost = ahead + 3 * Math.abs(x * dy - y * dx);
    if (cost < least) [found, least] = [n, cost];
  }
  return found;
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function onKey(event) {
  if (ARROWS[event.key]) {
    const from = state.focused;
    focusOn(from < 0 ? Math.max(state.selected, 0) : neighbor(from, ...ARROWS[event.key]));
  } else if ((event.key === "Enter" || event.key === " ") && state.focused >= 0) {
    select(state.focused);
  } else {
    return;
  }
  event.preventDefault();
}

function pointed(event, reach) {
  const box = el("nodes").getBoundingClientRect();
  return nodeAt(event.clientX - box.left, event.clientY - box.top, reach);
}

el("nodes").addEventListener("pointermove", (event) => {
  if (event.pointerType !== "touch") hover(pointed(event, 8));
});
el("nodes").addEventListener("pointerleave", () => hover(-1));
el("nodes").addEventListener("click", (event) => {
  state.hovered = -1;
  state.focused = -1;
  select(pointed(event, event.pointerType === "touch" ? 22 : 8));
});
el("nodes").addEventListener("keydown", onKey);
el("nodes").addEventListener("focus", () => {
  if (el("nodes").matches(":focus-visible") && state.focused < 0) {
    focusOn(Math.max(state.selected, 0));
  }
});
el("nodes").addEventListener("blur", () => focusOn(-1));
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") select(-1);
});

el("share").addEventListener("input", () => {
  state.share = el("share").value / 1000;
  drawLinks();
});
el("significant").addEventListener("change", () => {
  setSignificant(el("significant").checked);
  drawLinks();
  select(state.selected);
});
el("gamma").addEventListener("input", () => {
  state.gamma = Number(el("gamma").value);
  state.community = -1;
  fillCommunities();
  fillCard();
  drawLinks();
  drawNodes();
});
el("graph").addEventListener("change", () => useGraph(el("graph").selectedIndex));

// ---------------------------------------------------------------- searching

const search = { nodes: [], active: 0 };

function find() {
  const wanted = el("search").value.trim().toLowerCase();
  search.nodes = [];
  for (let n = 0; wanted && n < nodeCount && search.nodes.length < 8; n++) {
    if (nodeName(n).toLowerCase().includes(wanted)) search.nodes.push(n);
  }
  search.active = 0;
  listFound();
}

function listFound() {
  const list = el("found");
  list.replaceChildren();
  search.nodes.forEach((node, i) => {
    const name = nodeName(node);
    const layer = layers[layerOf[node]].name;
    const text = name.startsWith(layer) ? name : `${name} (${layer})`;
    const item = append(list, "li", text, { id: `found-${i}`, role: "option" });
    item.setAttribute("aria-selected", String(i === search.active));
    item.addEventListener("pointerdown", (event) => {
      event.preventDefault(); // the field keeps the focus
      choose(node);
    });
  });
  list.hidden = !search.nodes.length;
  el("search").setAttribute("aria-expanded", String(!list.hidden));
  const active = list.hidden ? "" : `found-${search.active}`;
  el("search").setAttribute("aria-activedescendant", active);
}

function choose(node) {
  el("search").value = nodeName(node);
  search.nodes = [];
  listFound();
  select(node);
}

el("search").addEventListener("input", find);
el("search").addEventListener("blur", () => {
  search.nodes = [];
  listFound();
});
el("search").addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  const count = search.nodes.length;
  if (step && count) {
    search.active = (search.active + step + count) % count;
    listFound();
    event.preventDefault();
  } else if (event.key === "Enter" && count) {
    choose(search.nodes[search.active]);
  }
});

// ---------------------------------------------------------------- light and dark

const dark = window.matchMedia("(prefers-color-scheme: dark)");

function useTheme(name) {
  document.documentElement.dataset.theme = name;
  color.pixel = color("pixel");
  if (!state.graph) return;
  drawLinks();
  drawNodes();
  fillCommunities();
}

dark.addEventListener("change", () => useTheme(dark.matches ? "dark" : "light"));
el("theme").addEventListener("click", () => {
  useTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
});

// ---------------------------------------------------------------- start

document.title = data.title;
el("title").textContent = data.title;
for (const graph of data.graphs) append(el("graph"), "option", graph.name);
el("graph-choice").hidden = data.graphs.length < 2;
el("gamma").max = gammas.length - 1;
el("gamma").value = state.gamma;
el("gamma-choice").hidden = gammas.length < 2;
el("fdr").textContent = percent(data.fdr);
el("pixel-legend").hidden = !layers.some((layer) => layer.image);
for (const kind of ["weak", "middle", "strong"]) {
  append(el("width-legend"), "i", "", { className: `line ${kind}` });
  el("width-legend").append(" ");
}
useTheme(dark.matches ? "dark" : "light");
useGraph(0);
new ResizeObserver(layOut).observe(el("picture"));
// For scripts that show or test the page: where a node is, in CSS pixels.
window.flowGraph = {
  position: (node) => [place.x[node], place.y[node]],
  node: (name) => [...layerOf.keys()].find((n) => nodeName(n) === name) ?? -1,
};
