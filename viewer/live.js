/*
  Live: the model of one checkpoint runs in the page. `python viewer/make_live.py OUT.html` puts
  this file and the weights into viewer.html. The page decodes two boards from the same start, in
  the same order and with the same random numbers, each with its own number of latents. When the
  visitor commits a digit by hand, decoding goes on from there.

      T tokens in the pass   S positions   D width   H heads   K symbols   V vocabulary
      A cells, u of them unknown: c candidates and n latents are in the pass

  It computes the same as model.py (forward), noise.py (uniform) and sample.py (decode_pass for one
  sample and one cell a pass), so a seed gives the board that sample.py gives. The result becomes a
  trace (plumbing/trace.py), and the page shows it like any other.
*/
"use strict";

// -------------------------------------------------------------------------------------------------
// model.py

/** The weights, as fp32: {name: Float32Array}. They come in bf16, the upper half of fp32. */
function unpack({ weights, data }) {
  const raw = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  const halves = new Uint16Array(raw.buffer), found = {};
  let from = 0;
  for (const [name, size] of weights) {
    const bits = Uint32Array.from(halves.subarray(from, from + size), (half) => half << 16);
    found[name] = new Float32Array(bits.buffer);
    from += size;
  }
  return found;
}

/** x (T, D) times the transpose of weight (N, D) -> (T, N). Four rows of x share each weight. */
function linear(x, weight, T) {
  const D = x.length / T, N = weight.length / D, y = new Float32Array(T * N);
  for (let t = 0; t < T; t += 4) {
    const rows = [0, 1, 2, 3].map((i) => Math.min(t + i, T - 1));  // the last may come twice
    const [p, q, r, s] = rows.map((row) => row * D), [e, f, g, h] = rows.map((row) => row * N);
    for (let n = 0; n < N; n++) {
      let a = 0, b = 0, c = 0, d = 0;
      for (let i = 0, at = n * D; i < D; i++, at++) {
        const w = weight[at];
        a += x[p + i] * w;
        b += x[q + i] * w;
        c += x[r + i] * w;
        d += x[s + i] * w;
      }
      y[e + n] = a;
      y[f + n] = b;
      y[g + n] = c;
      y[h + n] = d;
    }
  }
  return y;
}

/** Each row (T, D) divided by its root mean square. */
function rmsNorm(x, T) {
  const D = x.length / T, y = new Float32Array(x.length);
  for (let t = 0; t < T; t++) {
    let sum = 0;
    for (let i = t * D; i < (t + 1) * D; i++) sum += x[i] * x[i];
    const scale = 1 / Math.sqrt(sum / D + 2 ** -23);  // fp32's epsilon, as torch's default
    for (let i = t * D; i < (t + 1) * D; i++) y[i] = x[i] * scale;
  }
  return y;
}

/** x/2 (1 + erf(x / sqrt 2)), erf as in Abramowitz and Stegun 7.1.26: off by 1.5e-7 at most. */
function gelu(x) {
  const z = Math.abs(x) / Math.SQRT2, t = 1 / (1 + 0.3275911 * z);
  const tail = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741
    + t * (-1.453152027 + t * 1.061405429)))) * Math.exp(-z * z);
  return x < 0 ? 0.5 * x * tail : 0.5 * x * (2 - tail);
}

/** Who may look at whom: the rule of model.visible. */
function visible(rank, q, k) {
  return rank[k] < rank[q] || k === q || (rank[k] === rank[q] && rank[q] <= 0);
}

/** qkv (T, 3 D) -> (T, D). */
function attention(qkv, T, H, rank) {
  const D = qkv.length / T / 3, d = D / H;
  const y = new Float32Array(T * D), weight = new Float64Array(T);
  for (let h = 0; h < H; h++) {
    for (let q = 0; q < T; q++) {
      const at = q * 3 * D + h * d;
      let most = -Infinity, total = 0;
      for (let k = 0; k < T; k++) {
        let dot = 0;
        const to = k * 3 * D + D + h * d;
        for (let i = 0; i < d; i++) dot += qkv[at + i] * qkv[to + i];
        weight[k] = visible(rank, q, k) ? dot / Math.sqrt(d) : -Infinity;
        most = Math.max(most, weight[k]);
      }
      for (let k = 0; k < T; k++) total += weight[k] = Math.exp(weight[k] - most);
      for (let k = 0; k < T; k++) {
        if (weight[k] === 0) continue;
        const p = weight[k] / total, from = k * 3 * D + 2 * D + h * d;
        for (let i = 0; i < d; i++) y[q * D + h * d + i] += p * qkv[from + i];
      }
    }
  }
  return y;
}

/** qkv (T, 3 D): each head's keys get a root mean square of 1, its queries of 2. In place. */
function normalizeQK(qkv, T, H) {
  const d = qkv.length / T / 3 / H;
  for (let t = 0; t < T; t++) {
    for (let part = 0; part < 2 * H; part++) {  // H queries, then H keys
      const at = (t * 3 * H + part) * d, head = qkv.subarray(at, at + d);
      head.set(rmsNorm(head, 1).map((value) => (part < H ? 2 : 1) * value));
    }
  }
  return qkv;
}

/** tokens, positions, rank: T numbers each -> logits (T, K). */
function forward(model, tokens, positions, rank) {
  const { width: D, depth, heads, loops, qkNorm, w } = model, T = tokens.length;
  const add = (x, y) => x.forEach((value, i) => { x[i] = value + y[i]; });
  const x = new Float32Array(T * D);
  for (let t = 0; t < T; t++) {
    for (let i = 0; i < D; i++) {
      x[t * D + i] = w["token.weight"][tokens[t] * D + i]
        + w["position.weight"][positions[t] * D + i];
    }
  }
  for (let layer = 0; layer < depth * loops; layer++) {
    const of = (name) => w[`blocks.${layer % depth}.${name}.weight`];
    const qkv = linear(rmsNorm(x, T), of("attn.qkv"), T);
    const mixed = attention(qkNorm ? normalizeQK(qkv, T, heads) : qkv, T, heads, rank);
    add(x, linear(mixed, of("attn.proj"), T));
    add(x, linear(linear(rmsNorm(x, T), of("up"), T).map(gelu), of("down"), T));
  }
  return linear(rmsNorm(x, T), w["head.weight"], T);
}

function softmax(logits) {
  const most = Math.max(...logits), parts = Array.from(logits, (l) => Math.exp(l - most));
  const total = parts.reduce((a, b) => a + b);
  return parts.map((p) => p / total);
}

// -------------------------------------------------------------------------------------------------
// noise.py, in 64 bits

const wrap = (x) => BigInt.asUintN(64, x);

function mix(x) {
  x = wrap((x ^ (x >> 30n)) * -0x40A7B892E31B1A47n);
  x = wrap((x ^ (x >> 27n)) * -0x6B2FB644ECCEEE15n);
  return x ^ (x >> 31n);
}

/** The key of a start (S tokens). differ: as the first copy in sample_keys(copies_differ=True). */
function sampleKey(seed, start, differ) {
  let content = 0n;
  start.forEach((token, i) => { content += mix(wrap(BigInt(token) + (BigInt(i) << 16n))); });
  if (differ) content += mix(1n << 40n);
  return mix(wrap(content + mix(BigInt(seed) + (1n << 50n))));
}

/** `count` random numbers in (0, 1): the draw of this `number`, the same as in Python. */
function uniform(key, number, count) {
  return Array.from({ length: count }, (_, i) => {
    const bits = mix(wrap(key + ((BigInt(number) << 32n) + BigInt(i + 1)) * -0x61C8864680B583EBn));
    return Math.fround(Number(bits >> 40n) + 0.5) / 2 ** 24;
  });
}

// -------------------------------------------------------------------------------------------------
// sample.py

/** The unknown cells in their order: c candidates, the latents, the cells that are left out. */
function inOrder(unknown, c, order, noise) {
  const first = order === "left_to_right" ? unknown.slice(0, c) : [];
  const rest = unknown.slice(first.length).sort((a, b) => noise[a] - noise[b]);
  return [...first, ...rest];
}

function certainty(probs, order) {
  const [first, second] = [...probs].sort((a, b) => b - a);
  if (order === "margin") return first - second;
  if (order === "entropy") return probs.reduce((sum, p) => sum + (p > 0 ? p * Math.log(p) : 0), 0);
  return first;
}

function indexOfMost(values) {
  return values.indexOf(Math.max(...values));
}

/** decode_pass() for one sample -> the step for a trace, or null when no cell is unknown.
 *
 *  board: A symbols, -1 where unknown; sampling: {order, latents, temperature}.
 */
function onePass(model, board, sampling, key) {
  const { P, K, MASK, BOS } = model, A = board.length, began = performance.now();
  const cells = [...board.keys()], unknown = cells.filter((cell) => board[cell] < 0);
  const u = unknown.length;
  if (!u) return null;
  // 1. put the unknown cells in order, 2. rank those that are present
  const c = Math.min(["random", "left_to_right"].includes(sampling.order) ? 1 : 8, u);
  const n = Math.min(sampling.latents, u - c);
  const order = inOrder(unknown, c, sampling.order, uniform(key, 2 * u, A));
  const candidates = order.slice(0, c);
  const who = Array(P + A).fill("."), rankOf = Array(P + A).fill(0);
  who.fill("k", 0, P);
  cells.forEach((cell) => { if (board[cell] >= 0) who[P + cell] = "k"; });
  candidates.forEach((cell) => { who[P + cell] = "c"; rankOf[P + cell] = n + 1; });
  order.slice(c, c + n).forEach((cell, i) => { who[P + cell] = "l"; rankOf[P + cell] = i + 1; });
  // 3. predict
  const present = [...who.keys()].filter((s) => who[s] !== ".");
  const tokens = present.map((s) => (s < P ? BOS : board[s - P] < 0 ? MASK : board[s - P]));
  const rank = present.map((s) => rankOf[s]), logits = forward(model, tokens, present, rank);
  const logitsOf = (s) => logits.subarray(present.indexOf(s) * K, (present.indexOf(s) + 1) * K);
  // 4. commit the candidate that the model is most certain of
  const sure = candidates.map((cell) => certainty(softmax(logitsOf(P + cell)), sampling.order));
  const best = indexOfMost(sure), cell = candidates[best];
  let scores = softmax(logitsOf(P + cell));
  if (sampling.temperature) {
    const noise = uniform(key, 2 * u + 1, c * K).slice(best * K, (best + 1) * K);
    scores = softmax(logitsOf(P + cell).map((l) => l / sampling.temperature))
      .map((p, k) => p / -Math.log(noise[k]));
  }
  const asked = present.filter((s) => "lc".includes(who[s]));
  const probs = asked.map((s) => softmax(logitsOf(s)));
  const entropy = probs.map((p) => -certainty(p, "entropy") / Math.log(K));
  return { who: who.join(""), rank, probs: inBytes(probs.flat()), entropy: inBytes(entropy),
           set: [[cell, indexOfMost(scores)]], undone: [], tokens: present.length, passes: 1,
           seconds: (performance.now() - began) / 1000 };
}

function inBytes(values) {
  const whole = values.map((v) => Math.round(255 * Math.min(1, Math.max(0, v))));
  return btoa(String.fromCharCode(...whole));
}

/** What data/sudoku.py says about a board: digits that a row, column or box holds repeatedly. */
function mistakesOf({ box: [h, w], side: N, symbols }, board) {
  const kinds = { row: (r) => r, column: (r, c) => c,
                  box: (r, c) => Math.floor(r / h) * (N / w) + Math.floor(c / w) };
  const said = [];
  for (const [kind, place] of Object.entries(kinds)) {
    const times = Array.from({ length: N }, () => Array(N).fill(0));  // [unit][symbol]
    board.forEach((symbol, i) => {
      if (symbol >= 0) times[place(Math.floor(i / N), i % N)][symbol]++;
    });
    times.forEach((unit, i) => unit.forEach((count, symbol) => {
      const words = count === 2 ? "twice" : `${count} times`;
      if (count > 1) said.push(`${kind} ${i + 1} holds ${symbols[symbol]} ${words}`);
    }));
  }
  return said;
}

/** A trace of one sample that began at `start` (A symbols) and made these steps. */
function traceOf(model, sampling, start, steps) {
  const board = [...start];
  let told = [], seconds = 0;
  const shown = steps.map((step) => {
    for (const [cell, symbol] of step.set) board[cell] = symbol;
    const mistakes = mistakesOf(model, board), same = String(mistakes) === String(told);
    told = mistakes;
    seconds += step.seconds;
    return { ...step, seconds, ...(same ? {} : { mistakes }) };
  });
  return { format: "nanolatent trace", version: 1,
    task: { name: model.task, kind: "board", side: model.side, box: model.box, P: model.P,
            A: board.length },
    symbols: model.symbols,
    about: { objective: model.objective, order: sampling.order, seed: sampling.seed,
             latents: sampling.latents >= board.length - 1 ? "all" : sampling.latents },
    samples: [{ prompt: "", start, given: start, reference: null, mistakes: told,
      solved: !told.length && !board.includes(-1), nfe: steps.length,
      tokens: steps.reduce((sum, step) => sum + step.tokens, 0), steps: shown }] };
}

// -------------------------------------------------------------------------------------------------
// The page: two live boards

const live = { model: null, start: [], boards: [], run: 0 };

function startLive() {
  const model = live.model = JSON.parse($("model").textContent);
  model.w = unpack(model);
  live.start = Array(model.side ** 2).fill(-1);
  buildControls($("live"));
  for (const side of ["left", "right"]) {
    const sampling = { latents: 0, order: "random", seed: 0 };
    const [sample] = load(JSON.stringify(traceOf(model, sampling, live.start, [])), side);
    const board = { sample, steps: [] };
    sample.redo = (t, cell, symbol) => commitByHand(board, t, cell, symbol);
    sample.give = give;
    live.boards.push(board);
  }
  document.addEventListener("keydown", onDigit, true);
  fillShelf();
  decodeAll();
}

function buildControls(root) {
  root.hidden = false;
  root.className = "row";
  const field = (words, element) => {
    const label = make(root, "label", "row quiet", words);
    label.append(element);
    element.addEventListener("change", () => decodeAll());
    return element;
  };
  const choice = (options) => {
    const select = make(null, "select");
    for (const [value, words] of options) make(select, "option", "", words).value = value;
    return select;
  };
  const most = live.start.length - 1;
  const counts = [...live.start.keys()].map((n) => [n, n === most ? "all" : String(n)]);
  make(root, "b", "", "Live");
  live.latents = ["left", "right"].map((side) => field(`latents, ${side}`, choice(counts)));
  live.latents[1].value = most;
  live.order = field("order", choice([["random", "random"], ["confidence", "confidence, of 8"],
    ["margin", "margin, of 8"], ["entropy", "entropy, of 8"], ["left_to_right", "left to right"]]));
  live.temperature = field("T", choice([[1, "1"], [0, "0, greedy"], [0.5, "0.5"], [2, "2"]]));
  const seed = { type: "number", value: 2, min: 0, max: 99999 };
  live.seed = field("seed", Object.assign(make(null, "input"), seed));
  make(root, "button", "", "Empty board").addEventListener("click", () => {
    live.start.fill(-1);
    decodeAll();
  });
  live.status = make(root, "span", "quiet");
  make(root, "p", "quiet", "At step 0 point at a cell and type a digit, or click a digit below the "
       + "board: the cell is given. 0 takes it back. At a later step the digit is committed "
       + "instead, and decoding goes on from there.");
}

function samplingOf(board) {
  const i = live.boards.indexOf(board), seed = Math.floor(Number(live.seed.value));
  return { latents: Number(live.latents[i].value), order: live.order.value,
           temperature: Number(live.temperature.value), seed: seed >= 0 && seed < 1e9 ? seed : 0 };
}

function decodeAll(follow = true) {
  live.boards.forEach((board) => { board.steps = []; });
  decodeOn(live.boards, follow);
}

/** Decode these boards from where they are, a pass at a time. follow: show each. */
async function decodeOn(boards, follow = true) {
  const mine = ++live.run, { model } = live;
  const jobs = boards.map((board) => {
    const sampling = samplingOf(board), start = live.start.map((s) => (s < 0 ? model.MASK : s));
    const differ = sampling.temperature > 0 || live.start.every((s) => s < 0);
    const key = sampleKey(sampling.seed, [...Array(model.P).fill(model.BOS), ...start], differ);
    return { board, sampling, key };
  });
  pause();
  for (const { board, sampling } of jobs) refresh(board, sampling);
  fillShelf();  // the titles name the sampling parameters
  for (let busy = true; busy;) {
    await new Promise((done) => setTimeout(done, 0));
    if (live.run !== mine) return;  // another decode has begun
    busy = false;
    for (const { board, sampling, key } of jobs) {
      const symbols = [...board.sample.boards[board.sample.boards.length - 1]];
      const step = onePass(model, symbols, sampling, key);
      if (!step) continue;
      board.steps.push(step);
      refresh(board, sampling);
      busy = true;
    }
    const done = Math.max(...jobs.map(({ board }) => board.steps.length));
    live.status.textContent = busy ? `pass ${done}` : "";
    if (busy && follow) now.step = done;
    show();
  }
}

/** Show on the shelf what has been decoded by now; the panel and its focus stay. */
function refresh(board, sampling) {
  const json = JSON.stringify(traceOf(live.model, sampling, live.start, board.steps));
  Object.assign(board.sample, read(json, board.sample.file)[0]);
}

/** Give a digit at the start (-1: take it back) on both boards; the page stays at step 0. */
function give(cell, symbol) {
  live.start[cell] = symbol;
  decodeAll(false);
}

/** Commit this symbol here in step t, then decode on. */
function commitByHand(board, t, cell, symbol) {
  board.steps = [...board.steps.slice(0, t - 1), { ...board.steps[t - 1], set: [[cell, symbol]] }];
  now.step = t;
  decodeOn([board]);
}

/** A digit is typed on the cell that has the focus or the mouse. */
function onDigit(e) {
  const typing = e.target.matches("input, select, textarea");
  if (typing || now.cell === null || !/^[0-9]$/.test(e.key)) return;
  if (Number(e.key) > live.model.side) return;
  e.preventDefault();
  const symbol = Number(e.key) - 1, focused = e.target.closest(".panel");
  const board = live.boards.find((b) => b.sample.panel?.root === focused) || live.boards[1];
  if (now.step === 0) give(now.cell, symbol);
  else if (symbol >= 0 && predicted(board.sample, now.step, now.cell)) {
    commitByHand(board, now.step, now.cell, symbol);
  }
}

if (typeof document !== "undefined") startLive();
