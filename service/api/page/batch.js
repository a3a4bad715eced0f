// Several pictures at once: which of them travel together, and which are too large to be sent at all.

/** Pictures in one request at most, whatever the service allows: the table fills while the rest is on its way. */
const PORTION = 8;

/**
 * `files` as lists of their places: each list is one request within the service's limits, in order. A file that is too
 * large alone is in none of them.
 */
export function portions(files, { max_upload_bytes: bytes = Infinity, max_images_per_request: images = PORTION } = {}) {
  const found = [];
  let size = 0;
  files.forEach((file, place) => {
    if (file.size > bytes) return;
    const full = !found.length || found.at(-1).length >= Math.min(images, PORTION) || size + file.size > bytes;
    if (full) {
      found.push([]);
      size = 0;
    }
    found.at(-1).push(place);
    size += file.size;
  });
  return found;
}
