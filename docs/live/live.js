// Runs the digits' network on what is drawn, and shows its attention.
import * as ort from "../vendor/onnxruntime-web/dist/ort.wasm.min.mjs";

const SIDE = 28; // of the image that the network sees, in pixels
const WINDOW = 7;
const HEADS = 4;

const find = (id) => document.getElementById(`live-${id}`);
const status = document.querySelector(".live-status");
const [drawing, seen, gate] = ["draw", "seen", "gate"].map((id) =>
  find(id).getContext("2d", { willReadFrequently: true }),
);
let session, digits, image, answers, pointer;
let running = false, changed = false;
const times = [];

ort.env.wasm.wasmPaths = new URL("../vendor/onnxruntime-web/dist/", import.meta.url).href;
ort.env.wasm.numThreads = 1; // more need headers that a static site cannot send

function canvasOf(width, height) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  return canvas.getContext("2d", { willReadFrequently: true });
}

function clear() {
  drawing.fillStyle = "#000";
  drawing.fillRect(0, 0, drawing.canvas.width, drawing.canvas.height);
  change();
}

// The drawing in a box of 20 x 20 pixels, its centre of mass in the middle, as MNIST's digits are.
function centred() {
  const { width, height } = drawing.canvas;
  const { data } = drawing.getImageData(0, 0, width, height);
  let [left, right, top, bottom] = [width, -1, height, -1];
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++)
      if (data[4 * (y * width + x)] > 20) {
        [left, right] = [Math.min(left, x), Math.max(right, x)];
        [top, bottom] = [Math.min(top, y), Math.max(bottom, y)];
      }
  const pixels = new Float32Array(SIDE * SIDE);
  if (right < 0) return pixels;
  const size = [right - left + 1, bottom - top + 1];
  const [w, h] = size.map((n) => (20 * n) / Math.max(...size));
  const place = (x, y) => {
    const small = canvasOf(SIDE, SIDE);
    small.imageSmoothingQuality = "high";
    small.drawImage(drawing.canvas, left, top, ...size, x, y, w, h);
    const { data } = small.getImageData(0, 0, SIDE, SIDE);
    return pixels.map((_, i) => data[4 * i] / 255);
  };
  const first = place((SIDE - w) / 2, (SIDE - h) / 2);
  let [mass, x, y] = [0, 0, 0];
  first.forEach((value, i) => {
    mass += value;
    x += value * (i % SIDE);
    y += value * Math.floor(i / SIDE);
  });
  const middle = (SIDE - 1) / 2;
  return place(
    Math.round((SIDE - w) / 2 + middle - x / mass),
    Math.round((SIDE - h) / 2 + middle - y / mass),
  );
}

function change() {
  changed = true;
  if (!running) run();
}

async function run() {
  running = true;
  while (changed && session) {
    changed = false;
    image = centred();
    const tensor = new ort.Tensor("float32", image, [1, SIDE, SIDE, 1]);
    const start = performance.now();
    const results = await session.run({ [session.inputNames[0]]: tensor });
    times.push(performance.now() - start);
    answers = session.outputNames.map((name) => results[name].data);
    show();
    await new Promise(requestAnimationFrame);
  }
  running = false;
}

function show() {
  const [probabilities, , channels, pixels] = answers;
  const blank = !image.some((value) => value > 0);
  const best = probabilities.indexOf(Math.max(...probabilities));
  find("answer").textContent = blank ? "none yet" : `${best}`;
  bars(find("classes"), blank ? probabilities.map(() => 0) : probabilities, true);
  bars(find("channels"), channels);
  const side = Math.sqrt(pixels.length);
  const picture = gate.createImageData(side, side);
  pixels.forEach((value, i) => picture.data.set([255 * value, 255 * value, 255 * value, 255], 4 * i));
  gate.putImageData(picture, 0, 0);
  const recent = times.slice(-20).sort((a, b) => a - b);
  const milliseconds = recent[recent.length >> 1].toFixed(1);
  status.textContent = `One answer takes ${milliseconds} ms here, the median of ${recent.length}.`;
  status.dataset.milliseconds = milliseconds;
  showSeen();
}

function bars(parent, values, named = false) {
  while (parent.children.length < values.length) {
    const bar = parent.appendChild(document.createElement("div"));
    if (named) bar.appendChild(document.createElement("span")).textContent = parent.children.length - 1;
  }
  values.forEach((value, i) => {
    parent.children[i].style.height = `${100 * value}%`;
    parent.children[i].title = value.toFixed(3);
  });
}

// The image, and in red where the pixel under the pointer attends to.
function showSeen() {
  const picture = seen.createImageData(SIDE, SIDE);
  image.forEach((value, i) => picture.data.set([255 * value, 255 * value, 255 * value, 255], 4 * i));
  if (pointer) {
    const [row, column] = pointer;
    const heads = find("head").value === "" ? [...Array(HEADS).keys()] : [Number(find("head").value)];
    const places = WINDOW * WINDOW;
    const scores = Array.from({ length: places }, (_, place) =>
      heads.reduce((sum, head) => {
        const pixel = (row * SIDE + column) * HEADS + head;
        return sum + answers[1][pixel * places + place] / heads.length;
      }, 0),
    );
    const most = Math.max(...scores);
    find("seen").dataset.total = scores.reduce((a, b) => a + b).toFixed(4);
    scores.forEach((score, place) => {
      const y = row + Math.floor(place / WINDOW) - (WINDOW >> 1);
      const x = column + (place % WINDOW) - (WINDOW >> 1);
      if (Math.min(x, y) < 0 || Math.max(x, y) >= SIDE) return;
      const share = score / most;
      const grey = 255 * image[y * SIDE + x];
      const colour = [grey + (255 - grey) * share, grey * (1 - share), grey * (1 - share), 255];
      picture.data.set(colour, 4 * (y * SIDE + x));
    });
  }
  const small = canvasOf(SIDE, SIDE);
  small.putImageData(picture, 0, 0);
  seen.imageSmoothingEnabled = false;
  const { width, height } = seen.canvas;
  seen.drawImage(small.canvas, 0, 0, width, height);
  if (!pointer) return;
  const [row, column] = pointer;
  seen.strokeStyle = "#4af";
  seen.lineWidth = 2;
  seen.strokeRect((column * width) / SIDE, (row * height) / SIDE, width / SIDE, height / SIDE);
}

// Draws a photograph's ink in white on black: what is darker, or lighter, than what is around it.
async function takePhotograph(file) {
  const photograph = await createImageBitmap(file);
  const { width, height } = drawing.canvas;
  const scale = Math.min(width / photograph.width, height / photograph.height);
  const [w, h] = [photograph.width, photograph.height].map((n) => Math.max(1, Math.round(n * scale)));
  const copy = canvasOf(w, h);
  copy.drawImage(photograph, 0, 0, w, h);
  const { data } = copy.getImageData(0, 0, w, h);
  const grey = Float32Array.from({ length: w * h }, (_, i) => data[4 * i] + data[4 * i + 1] + data[4 * i + 2]);
  const around = meansAround(grey, w, h, Math.ceil(Math.max(w, h) / 5));
  let ink = grey.map((value, i) => around[i] - value);
  const squares = (sign) => ink.reduce((sum, value) => sum + Math.max(0, sign * value) ** 2, 0);
  if (squares(-1) > squares(1)) ink = ink.map((value) => -value);
  const most = ink.toSorted().at(-Math.ceil(ink.length / 100));
  clear();
  const picture = drawing.createImageData(w, h);
  ink.forEach((value, i) => {
    const share = 255 * Math.min(1, Math.max(0, (2 * value) / most - 0.6));
    picture.data.set([share, share, share, 255], 4 * i);
  });
  drawing.putImageData(picture, Math.floor((width - w) / 2), Math.floor((height - h) / 2));
  change();
}

// The mean of the square round each pixel, from a table of sums.
function meansAround(values, width, height, reach) {
  const sums = new Float64Array((width + 1) * (height + 1));
  const at = (x, y) => y * (width + 1) + x;
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++)
      sums[at(x + 1, y + 1)] =
        values[y * width + x] + sums[at(x, y + 1)] + sums[at(x + 1, y)] - sums[at(x, y)];
  return values.map((_, i) => {
    const [x, y] = [i % width, Math.floor(i / width)];
    const [left, right] = [Math.max(0, x - reach), Math.min(width, x + reach + 1)];
    const [top, bottom] = [Math.max(0, y - reach), Math.min(height, y + reach + 1)];
    const sum = sums[at(right, bottom)] - sums[at(left, bottom)] - sums[at(right, top)] + sums[at(left, top)];
    return sum / ((right - left) * (bottom - top));
  });
}

function placeOf(event) {
  const { left, top, width, height } = event.target.getBoundingClientRect();
  return [(event.clientX - left) / width, (event.clientY - top) / height];
}

function watchDrawing(canvas) {
  let last;
  const stroke = (event) => {
    const [x, y] = placeOf(event).map((share) => share * canvas.width);
    drawing.strokeStyle = "#fff";
    [drawing.lineWidth, drawing.lineCap] = [22, "round"];
    drawing.beginPath();
    drawing.moveTo(...(last ?? [x, y]));
    drawing.lineTo(x, y);
    drawing.stroke();
    last = [x, y];
    change();
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    last = undefined;
    stroke(event);
  });
  canvas.addEventListener("pointermove", (event) => event.buttons && stroke(event));
}

function watchPointer(canvas) {
  const point = (event) => {
    if (!answers) return;
    const [x, y] = placeOf(event).map((n) => Math.floor(n * SIDE));
    if (Math.min(x, y) < 0 || Math.max(x, y) >= SIDE) return;
    pointer = [y, x];
    showSeen();
  };
  canvas.addEventListener("pointermove", point);
  canvas.addEventListener("pointerdown", point);
  find("head").addEventListener("change", () => answers && showSeen());
}

function takeAnother() {
  const number = Math.floor(Math.random() * digits.labels.length);
  const small = canvasOf(SIDE, SIDE);
  const picture = small.createImageData(SIDE, SIDE);
  digits.pixels[number].forEach((value, i) => picture.data.set([value, value, value, 255], 4 * i));
  small.putImageData(picture, 0, 0);
  drawing.drawImage(small.canvas, 0, 0, drawing.canvas.width, drawing.canvas.height);
  find("draw").dataset.label = digits.labels[number];
  change();
}

for (let head = 0; head < HEADS; head++) find("head").add(new Option(head + 1, head));
find("clear").addEventListener("click", clear);
find("another").addEventListener("click", takeAnother);
find("photograph").addEventListener("change", ({ target }) => target.files[0] && takePhotograph(target.files[0]));
watchDrawing(find("draw"));
watchPointer(find("seen"));
clear();
try {
  const fetched = (name) => fetch(new URL(name, import.meta.url));
  digits = await (await fetched("digits.json")).json();
  const model = await (await fetched("digits.onnx")).arrayBuffer();
  session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
  pointer = [14, 14];
  takeAnother();
} catch (error) {
  status.textContent = `The network could not be loaded: ${error.message}`;
  throw error;
}
