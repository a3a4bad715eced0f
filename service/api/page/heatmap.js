// A class activation map over a photo: a small grid of numbers becomes a smooth, coloured canvas.

/** Inferno (Smith and van der Walt, matplotlib), sampled at equal steps: lightness rises evenly with the value. */
const INFERNO = [
  [0, 0, 4], [22, 11, 57], [66, 10, 104], [106, 23, 110], [147, 38, 103], [188, 55, 84],
  [221, 81, 58], [243, 120, 25], [252, 165, 10], [246, 215, 70], [252, 255, 164],
];

/** Pixels along the longer side of the drawn map; the browser scales the canvas to the photo. */
const RESOLUTION = 224;

/** The share of the shorter side that torchvision's presets keep (224 of 256), when nobody says otherwise. */
const USUAL_CROP = 224 / 256;

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const mix = (a, b, share) => a + (b - a) * share;

/** `value` in 0…1 to `[red, green, blue]` in 0…255. */
export function colour(value) {
  const place = clamp(value, 0, 1) * (INFERNO.length - 1);
  const below = Math.min(Math.floor(place), INFERNO.length - 2);
  return INFERNO[below].map((channel, i) => mix(channel, INFERNO[below + 1][i], place - below));
}

/**
 * The grid out of an answer of `/explain`, as rows of numbers in 0…1: evidence against the class counts as none,
 * the strongest cell is 1. `null` when the answer holds no grid, or nothing in it speaks for the class.
 */
export function gridOf(answer) {
  const rows = answer.grid ?? answer.map ?? answer.heatmap;
  const regular = Array.isArray(rows) && rows.length > 0 && rows[0]?.length > 0
    && rows.every((row) => row.length === rows[0].length);
  if (!regular) return null;
  const strongest = Math.max(...rows.flat());
  return strongest > 0 ? rows.map((row) => row.map((cell) => clamp(cell / strongest, 0, 1))) : null;
}

/** Bilinear value of the grid at `x`, `y` in 0…1; a cell's number stands at the cell's centre. */
function valueAt(grid, x, y) {
  const column = clamp(x * grid[0].length - 0.5, 0, grid[0].length - 1);
  const row = clamp(y * grid.length - 0.5, 0, grid.length - 1);
  const [left, top] = [Math.floor(column), Math.floor(row)];
  const right = Math.min(left + 1, grid[0].length - 1);
  const bottom = Math.min(top + 1, grid.length - 1);
  const upper = mix(grid[top][left], grid[top][right], column - left);
  const lower = mix(grid[bottom][left], grid[bottom][right], column - left);
  return mix(upper, lower, row - top);
}

/** Paints `grid` over the whole of `canvas`. Values are interpolated first and coloured after. */
export function paint(canvas, grid) {
  const scale = RESOLUTION / Math.max(grid.length, grid[0].length);
  canvas.width = Math.round(grid[0].length * scale);
  canvas.height = Math.round(grid.length * scale);
  fill(canvas, (x, y) => valueAt(grid, x, y));
}

/** Paints the colour scale from 0 (left) to 1 (right). */
export function paintScale(canvas) {
  fill(canvas, (x) => x);
}

function fill(canvas, value) {
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  for (let y = 0, at = 0; y < canvas.height; y += 1) {
    for (let x = 0; x < canvas.width; x += 1, at += 4) {
      image.data.set(colour(value((x + 0.5) / canvas.width, (y + 0.5) / canvas.height)), at);
      image.data[at + 3] = 255;
    }
  }
  context.putImageData(image, 0, 0);
}

/**
 * The part of a `width` × `height` photo that the model saw, as `[left, top, right, bottom]` in 0…1. The answer's own
 * `box` decides; without one it is the centre that the model's preprocessing keeps.
 */
export function seenBox(answer, preprocessing, width, height) {
  if (Array.isArray(answer.box) && answer.box.length === 4) return answer.box;
  const [across, down] = sharesSeen(preprocessing ?? {}, width, height);
  return [0.5 - across / 2, 0.5 - down / 2, 0.5 + across / 2, 0.5 + down / 2];
}

/** Whether a part `[left, top, right, bottom]` has an edge that can be seen inside the photo. */
export function isFramed([left, top, right, bottom]) {
  const least = 0.005; // less than a line's width on most screens
  return left > least || top > least || right < 1 - least || bottom < 1 - least;
}

/** How much of the photo's width and height is kept. Sizes are `[height, width]`; one number is the short side. */
function sharesSeen({ fit, resize, crop }, width, height) {
  const shorter = Math.min(width, height);
  if (!crop) return [(USUAL_CROP * shorter) / width, (USUAL_CROP * shorter) / height];
  if (fit === "stretch" || fit === "pad-resize") return [1, 1];
  const [tall, wide] = crop;
  if (Array.isArray(resize)) return [Math.min(wide / resize[1], 1), Math.min(tall / resize[0], 1)];
  const least = Math.max(wide / width, tall / height); // the scale at which the crop is just filled
  const scale = fit === "crop-resize" ? least : resize ? resize / shorter : 1;
  return [Math.min(wide / (width * scale), 1), Math.min(tall / (height * scale), 1)];
}
