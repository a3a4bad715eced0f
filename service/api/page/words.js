// What goes wrong, in a person's words. The API's own stay below them: its detail, status, code and request id.

/** `10 MiB`, `1.5 MiB`, `640 KiB`, `12 bytes`. */
export function sizeOf(bytes) {
  for (const [unit, size] of [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]]) {
    if (bytes >= size) return `${Math.round((bytes / size) * 10) / 10} ${unit}`;
  }
  return `${bytes} bytes`;
}

const TITLES = {
  payload_too_large: ({ max_upload_bytes: bytes }) => (bytes ? `Larger than ${sizeOf(bytes)}` : "Too large to be sent"),
  image_too_large: ({ max_image_pixels: pixels }) => (pixels ? `More than ${Math.round(pixels / 1e6)} million pixels` : "Too many pixels"),
  too_many_images: () => "Too many pictures at once",
  unsupported_media_type: () => "Not a picture that can be read",
  invalid_image: () => "The picture is damaged",
  empty_body: () => "The file is empty",
  unauthorized: () => "An API key is needed",
  overloaded: () => "Too many requests at the moment",
  not_ready: () => "The service is not ready yet",
  draining: () => "The service is shutting down",
  engine_failed: () => "The model has stopped",
  deadline_exceeded: () => "It took too long",
  internal: () => "Something went wrong in the service",
};

/** The title for a problem's `code`; the one that came with it where the code is not known here. */
export function titleOf(code, title, limits) {
  return TITLES[code]?.(limits) ?? title;
}

/** One sentence: it begins with a capital letter and ends with a full stop. */
export function sentence(text) {
  const plain = text.trim();
  return plain && plain[0].toUpperCase() + plain.slice(1) + (/[.!?…]$/.test(plain) ? "" : ".");
}

/** What a picture that is too large to be sent is told, before it is sent; `null` for one that is not. */
export function tooLarge(file, limits) {
  const most = limits.max_upload_bytes;
  if (!most || file.size <= most) return null;
  return { title: `Larger than ${sizeOf(most)}`, code: "payload_too_large", detail: `${file.name} has ${sizeOf(file.size)}, and this service takes ${sizeOf(most)} (max_upload_bytes).` };
}
